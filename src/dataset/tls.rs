//! Which servers are trusted: those that `requests` trusts.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_native_certs::{load_certs_from_paths, load_native_certs};

use crate::error::Error;

/// # Errors
/// [`Error::Unusable`] when the environment names a CA bundle for `requests` that holds no certificate.
pub fn config() -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let bundle = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
        .into_iter()
        .find_map(|name| Some((name, PathBuf::from(set(name)?))));
    let named = if let Some((name, path)) = bundle {
        let named = certificates(name, &path)?;
        roots.add_parsable_certificates(named.iter().cloned());
        named
    } else {
        // Those of SSL_CERT_FILE where it is set, else the system's.
        let native = load_native_certs().certs;
        roots.add_parsable_certificates(native.iter().cloned());
        // As certifi is for requests: a slim container has no authorities of its own.
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if set("SSL_CERT_FILE").is_some() {
            native
        } else {
            Vec::new()
        }
    };
    trusting(roots, named)
}

/// For a URL that may never need TLS: what is wrong with the environment's CA bundle is then nobody's trouble.
///
/// # Errors
/// [`Error::Unusable`] when TLS cannot be set up at all.
pub fn config_without_bundle() -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    trusting(roots, Vec::new())
}

fn trusting(
    roots: RootCertStore,
    named: Vec<CertificateDer<'static>>,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier::new(roots, named, Arc::clone(&provider))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(config)
}

fn unusable(error: &impl Display) -> Error {
    Error::Unusable(format!("cannot set up HTTPS: {error}"))
}

/// From a PEM file, or a folder as OpenSSL's rehash leaves it.
fn certificates(name: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let loaded = if path.is_dir() {
        load_certs_from_paths(None, Some(path))
    } else {
        load_certs_from_paths(Some(path), None)
    };
    if loaded.certs.is_empty() {
        let reason = loaded
            .errors
            .first()
            .map_or_else(|| "it holds no certificate".to_owned(), ToString::to_string);
        return Err(Error::Unusable(format!(
            "no CA certificate can be read from {name}={}: {reason}; correct or unset it",
            path.display()
        )));
    }
    Ok(loaded.certs)
}

/// The usual rules, and one of OpenSSL's, which `requests` follows: a server's own certificate may be the one that the
/// environment names, even where it is marked as an authority's, as `openssl req -x509` marks each that it makes.
#[derive(Debug)]
struct Verifier {
    usual: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(
        roots: RootCertStore,
        named: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let builder =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        Ok(Self {
            usual: builder.build().map_err(|error| unusable(&error))?,
            named,
            provider,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict =
            self.usual
                .verify_server_cert(certificate, intermediates, name, ocsp_response, now);
        match verdict {
            // Its dates have been found right by then; its name has not been looked at.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(reason)))
                if reason.to_string().contains("CaUsedAsEndEntity")
                    && self.named.iter().any(|named| named == certificate) =>
            {
                let parsed = ParsedCertificate::try_from(certificate)?;
                rustls::client::verify_server_name(&parsed, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// `openssl req -x509`, marked as an authority's, for photos.example, until 2126.
    const SELF_SIGNED: &str = "\
-----BEGIN CERTIFICATE-----
MIIBozCCAUqgAwIBAgIUaGTOfewLt4Xqrl3byZ2cmdCQqTAwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOcGhvdG9zLmV4YW1wbGUwIBcNMjYxMTIzMDYyNzA2WhgPMjEy
NjEwMzAwNjI3MDZaMBkxFzAVBgNVBAMMDnBob3Rvcy5leGFtcGxlMFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAE2jhBIIjh3cmjp4LIwjfQg6NiJadoX/a2zrgzC8YY
6sdD14MIH8q2XjMi2zHOrZW/yk0bTbxem3F1Wtmdur81N6NuMGwwHQYDVR0OBBYE
FAZVTBxIW3z7FrROiYdOCShYgefDMB8GA1UdIwQYMBaAFAZVTBxIW3z7FrROiYdO
CShYgefDMA8GA1UdEwEB/wQFMAMBAf8wGQYDVR0RBBIwEIIOcGhvdG9zLmV4YW1w
bGUwCgYIKoZIzj0EAwIDRwAwRAIgNKuRamDtfGhE7gTf1P59WV8gIVXS1HISIf8Z
h/uhXGICICAB0Axd2gWBIqm/KjhnOvtkWojI3+pcytuyOxIdD0BH
-----END CERTIFICATE-----
";

    fn verdict(named: bool, name: &str) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, SELF_SIGNED).unwrap();
        let certificate = certificates("REQUESTS_CA_BUNDLE", &path).unwrap().remove(0);
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let named = if named {
            vec![certificate.clone()]
        } else {
            Vec::new()
        };
        let verifier = Verifier::new(roots, named, Arc::new(ring::default_provider())).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let in_2030 = UnixTime::since_unix_epoch(Duration::from_secs(1_900_000_000));
        let verdict = verifier.verify_server_cert(&certificate, &[], &name, &[], in_2030);
        verdict.map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_servers_own_certificate_is_trusted_when_it_is_named_and_for_its_name_alone() {
        verdict(true, "photos.example").unwrap();
        assert!(
            verdict(true, "other.example")
                .unwrap_err()
                .contains("not valid for name")
        );
        assert!(
            verdict(false, "photos.example")
                .unwrap_err()
                .contains("CaUsedAsEndEntity")
        );
    }

    #[test]
    fn a_bundle_without_certificates_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), "no").unwrap();
        for path in [
            folder.path().join("ca.pem"),
            folder.path().join("absent"),
            folder.path().to_owned(),
        ] {
            let message = certificates("REQUESTS_CA_BUNDLE", &path)
                .unwrap_err()
                .to_string();
            assert!(
                message.contains(&format!("REQUESTS_CA_BUNDLE={}", path.display())),
                "{message}"
            );
        }
    }
}
