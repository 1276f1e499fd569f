//! Which proxy a request goes by, decided as Python's `requests` does, which users have set their environment up for.

use std::net::Ipv4Addr;

use reqwest::{Proxy, Url};

/// For a client: the proxies of the environment, looked up for each host that it is redirected to.
pub fn of_the_environment() -> Proxy {
    let proxies = Proxies::read(|name| std::env::var(name).ok());
    Proxy::custom(move |url| proxies.of(url).map(str::to_owned))
}

struct Proxies {
    http: Option<String>,
    https: Option<String>,
    no_proxy: String,
}

impl Proxies {
    /// A name in lower case wins, and switches a proxy off where it is empty.
    fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        // In a CGI program, HTTP_PROXY is what the visitor sent as a header called Proxy.
        let is_cgi = variable("REQUEST_METHOD").is_some();
        let proxy = |name: &str| {
            let in_capitals = || match name {
                "http_proxy" if is_cgi => None,
                _ => variable(&name.to_uppercase()),
            };
            let value = variable(name).or_else(in_capitals)?;
            (!value.is_empty()).then_some(value)
        };
        let no_proxy = variable("no_proxy").filter(|hosts| !hosts.is_empty());
        Self {
            http: proxy("http_proxy").or_else(|| proxy("all_proxy")),
            https: proxy("https_proxy").or_else(|| proxy("all_proxy")),
            no_proxy: no_proxy
                .or_else(|| variable("NO_PROXY"))
                .unwrap_or_default(),
        }
    }

    fn of(&self, url: &Url) -> Option<&str> {
        let proxy = match url.scheme() {
            "https" => &self.https,
            _ => &self.http,
        };
        proxy.as_deref().filter(|_| !self.are_bypassed(url))
    }

    fn are_bypassed(&self, url: &Url) -> bool {
        if self.no_proxy == "*" {
            return true;
        }
        let host = url.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let address: Option<Ipv4Addr> = host.parse().ok();
        let with_port = url.port().map(|port| format!("{host}:{port}"));
        // An entry for one port is for names alone.
        let with_port = with_port.filter(|_| address.is_none());
        let hosts = self.no_proxy.replace(' ', "").to_lowercase();
        hosts
            .split(',')
            .filter(|entry| !entry.is_empty())
            .any(|entry| {
                let domain = entry.trim_start_matches('.');
                let is_in = |host: &str| {
                    host.strip_suffix(domain)
                        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                };
                is_in(host)
                    || with_port.as_deref().is_some_and(is_in)
                    || address.is_some_and(|address| is_in_network(address, entry))
            })
    }
}

/// `127.0.0.0/8`
fn is_in_network(address: Ipv4Addr, network: &str) -> bool {
    let parsed = network.split_once('/').and_then(|(network, bits)| {
        let bits: u32 = bits.parse().ok().filter(|bits| (1..=32).contains(bits))?;
        Some((network.parse::<Ipv4Addr>().ok()?, bits))
    });
    parsed.is_some_and(|(network, bits)| {
        (address.to_bits() ^ network.to_bits()) >> (u32::BITS - bits) == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(variables: &[(&str, &str)], url: &str) -> Option<String> {
        let set = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Proxies::read(set)
            .of(&url.parse().unwrap())
            .map(str::to_owned)
    }

    #[test]
    fn a_proxy_is_that_of_the_scheme_then_that_of_all() {
        for (variables, http, https) in [
            (&[][..], None, None),
            (&[("http_proxy", "a")], Some("a"), None),
            (&[("HTTPS_PROXY", "a")], None, Some("a")),
            (
                &[("ALL_PROXY", "a"), ("https_proxy", "b")],
                Some("a"),
                Some("b"),
            ),
            (&[("HTTP_PROXY", "a"), ("http_proxy", "b")], Some("b"), None),
            (&[("HTTP_PROXY", "a"), ("http_proxy", "")], None, None),
            (
                &[("HTTP_PROXY", "a"), ("REQUEST_METHOD", "GET")],
                None,
                None,
            ),
            (
                &[("http_proxy", "a"), ("REQUEST_METHOD", "GET")],
                Some("a"),
                None,
            ),
        ] {
            for (url, expected) in [("http://host/", http), ("https://host/", https)] {
                assert_eq!(
                    proxy(variables, url).as_deref(),
                    expected,
                    "{variables:?} {url}"
                );
            }
        }
    }

    /// Each as `requests.utils.should_bypass_proxies` answers.
    #[test]
    fn no_proxy_reads_as_requests_reads_it() {
        for (no_proxy, url, is_bypassed) in [
            ("", "http://host/", false),
            ("*", "http://host/", true),
            (" * ", "http://127.0.0.1:8000/", false),
            ("*", "http://127.0.0.1:8000/", true),
            ("x.com, *", "http://host/", false),
            ("host", "http://host/", true),
            ("HOST", "http://host:8000/", true),
            ("x.com , host", "http://host/", true),
            ("host", "http://other.host/", true),
            (".host", "http://other.host/", true),
            (".host", "http://host/", true),
            ("host", "http://ghost/", false),
            ("*.host", "http://a.host/", false),
            ("host:8000", "http://host:8000/", true),
            ("host:8000", "http://a.host:8000/", true),
            ("host:8001", "http://host:8000/", false),
            ("127.0.0.1", "http://127.0.0.1:8000/", true),
            ("127.0.0.1:8000", "http://127.0.0.1:8000/", false),
            ("127.0.0.0/8", "http://127.1.2.3/", true),
            ("127.0.0.0/16", "http://127.1.2.3/", false),
            ("127.1.2.3/32", "http://127.1.2.3/", true),
            ("127.0.0.0/0", "http://127.1.2.3/", false),
            (".0.0.1", "http://127.0.0.1/", true),
            ("::1", "http://[::1]/", true),
        ] {
            let variables = [("http_proxy", "a"), ("no_proxy", no_proxy)];
            let found = proxy(&variables, url).is_none();
            assert_eq!(found, is_bypassed, "{no_proxy:?} {url}");
        }
        let both = [
            ("http_proxy", "a"),
            ("no_proxy", "x.y"),
            ("NO_PROXY", "host"),
        ];
        assert_eq!(proxy(&both, "http://host/").as_deref(), Some("a"));
        let empty = [("http_proxy", "a"), ("no_proxy", ""), ("NO_PROXY", "host")];
        assert_eq!(proxy(&empty, "http://host/"), None);
    }
}
