use std::io::{self, Write};
use std::time::Duration;

use super::*;
use crate::dataset::samples::{Reply, Server, answer, lines, ok, silence, task};
use crate::error::DownloadFailure;
use crate::task::Level;

const SECRET: &str = "s3cr3t";

fn impatient() -> Patience {
    let moment = Duration::from_millis(1);
    Patience {
        first_pause: moment,
        longest_pause: moment,
        progress_bytes: 1 << 10,
        ..Patience::default()
    }
}

/// Fetches from the server's URL with `suffix`; what arrived, or the error.
fn fetch(
    server: &Server,
    suffix: &str,
    patience: &Patience,
) -> (Result<Vec<u8>, Error>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("images.zip");
    let (task, said) = task();
    let url = RedactedUrl::parse(&format!("{}{suffix}", server.url())).unwrap();
    let result = download(&url, &to, patience, &task).map(|downloaded| {
        let content = std::fs::read(&to).unwrap();
        assert_eq!(downloaded.bytes, content.len() as u64);
        content
    });
    (result, lines(&said, Level::Warning))
}

fn failure(error: &Error) -> DownloadFailure {
    match error {
        Error::Download { failure, .. } => *failure,
        other => panic!("a download error is wanted: {other:?}"),
    }
}

fn body() -> Vec<u8> {
    (0..40_000u32).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn a_url_is_shown_without_its_secrets() {
    for (text, shown) in [
        ("http://host/a.zip", "http://host/a.zip"),
        (
            "https://host:8443/a%20b.zip?sig=s3cr3t",
            "https://host:8443/a%20b.zip",
        ),
        ("http://host/a.zip#s3cr3t", "http://host/a.zip"),
        (
            "http://me:s3cr3t@host/a.zip?x=s3cr3t#s3cr3t",
            "http://host/a.zip",
        ),
        ("http://s3cr3t@host", "http://host/"),
        ("http://me:s3cr3t@host\\@a", "http://host/@a"),
        ("ht\ntp://me:s3cr3t@host/a?s3cr3t", "http://host/a"),
    ] {
        let url = RedactedUrl::parse(text).unwrap();
        assert_eq!(url.to_string(), shown, "{text}");
        assert!(
            !format!("{url:?} {}", url.host()).contains(SECRET),
            "{text}"
        );
    }
}

#[test]
fn what_is_no_http_url_is_a_value_error_without_secrets() {
    for text in [
        "",
        " ",
        "photos.zip",
        "/a.zip?s3cr3t",
        "ftp://me:s3cr3t@host/a.zip",
        "file:///a?s3cr3t",
        "http://",
        "http://h:s3cr3t/",
    ] {
        let error = RedactedUrl::parse(text).unwrap_err();
        assert!(matches!(error, Error::InvalidValue(_)), "{text}");
        assert!(
            error.to_string().contains("http://") && !error.to_string().contains(SECRET),
            "{error}"
        );
    }
}

#[test]
fn a_file_arrives_whole_with_one_request() {
    let server = Server::start(vec![ok("", &body())]);
    assert_eq!(fetch(&server, "", &impatient()).0.unwrap(), body());
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert!(
        requests[0].contains("user-agent: techtrash_musubitraining/1.0.0"),
        "{}",
        requests[0]
    );
}

#[test]
fn user_and_password_of_the_url_are_used() {
    let server = Server::start(vec![ok("", b"x")]);
    let url = RedactedUrl::parse(&format!("http://me:{SECRET}@{}/a", server.address)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    download(&url, &folder.path().join("a"), &impatient(), &task().0).unwrap();
    assert!(
        server.requests()[0].contains("authorization: basic bwu6cznjcjn0"),
        "{:?}",
        server.requests()
    );
}

#[test]
fn a_refusal_is_told_at_once_and_without_secrets() {
    for (status, hint) in [
        ("404 Not Found", "link"),
        ("403 Forbidden", "run out"),
        ("410 Gone", "link"),
        ("400 Bad", "400"),
    ] {
        let server = Server::start(vec![answer(status, b"no")]);
        let (result, warnings) = fetch(&server, &format!("?sig={SECRET}"), &impatient());
        let error = result.unwrap_err();
        let DownloadFailure::Status(code) = failure(&error) else {
            panic!("{error:?}")
        };
        assert!(
            status.starts_with(&code.to_string()) && error.to_string().contains(hint),
            "{error}"
        );
        assert!(
            error.to_string().contains("127.0.0.1") && !format!("{error:?}").contains(SECRET),
            "{error:?}"
        );
        assert_eq!(
            (server.requests().len(), warnings.len()),
            (1, 0),
            "{status}"
        );
    }
}

#[test]
fn what_may_pass_is_tried_again() {
    for status in [
        "500 Oops",
        "503 Busy",
        "429 Slow\r\nRetry-After: 1",
        "408 Late",
        "425 Early",
    ] {
        let server = Server::start(vec![answer(status, b""), ok("", &body())]);
        let (result, warnings) = fetch(&server, &format!("?sig={SECRET}"), &impatient());
        assert_eq!(result.unwrap(), body(), "{status}");
        assert_eq!(
            (server.requests().len(), warnings.len()),
            (2, 1),
            "{status}"
        );
        assert!(
            warnings[0].contains(&status[..3]) && !warnings[0].contains(SECRET),
            "{warnings:?}"
        );
    }
}

#[test]
fn tries_are_bounded() {
    let server = Server::start(vec![answer("500 Oops", b"")]);
    let error = fetch(&server, "", &impatient()).0.unwrap_err();
    assert_eq!(failure(&error), DownloadFailure::Status(500));
    assert_eq!(server.requests().len(), 5);
    // Cut behind each byte that counts as progress, but without a way to go on from there.
    let server = Server::start(vec![answer(
        "200 OK\r\nContent-Length: 160000",
        &body()[..90_000],
    )]);
    assert_eq!(
        failure(&fetch(&server, "", &impatient()).0.unwrap_err()),
        DownloadFailure::Connection
    );
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn nobody_listening_is_a_connection_failure() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = RedactedUrl::parse(&format!(
        "http://{}/?{SECRET}",
        listener.local_addr().unwrap()
    ))
    .unwrap();
    drop(listener);
    let folder = tempfile::tempdir().unwrap();
    let error = download(&url, &folder.path().join("a"), &impatient(), &task().0).unwrap_err();
    assert_eq!(failure(&error), DownloadFailure::Connection);
    assert!(
        error.to_string().contains("refused") && !format!("{error:?}").contains(SECRET),
        "{error}"
    );
}

#[test]
fn a_cut_body_is_resumed_where_it_ended() {
    let whole = body();
    for validator in [
        "ETag: \"one\"",
        "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nDate: Tue, 02 Jan 2024 00:00:00 GMT",
    ] {
        let rest = format!(
            "206 Partial\r\nContent-Length: 100000\r\nContent-Range: bytes 60000-159999/160000\r\n{validator}"
        );
        let server = Server::start(vec![
            answer(
                &format!("200 OK\r\nContent-Length: 160000\r\n{validator}"),
                &whole[..60_000],
            ),
            answer(&rest, &whole[60_000..]),
        ]);
        assert_eq!(
            fetch(&server, "", &impatient()).0.unwrap(),
            whole,
            "{validator}"
        );
        let again = &server.requests()[1];
        assert!(
            again.contains("range: bytes=60000-\r\n") && again.contains("if-range: "),
            "{again}"
        );
    }
}

#[test]
fn two_versions_are_never_spliced() {
    let (old, new) = (vec![1; 160_000], body());
    let cut = |etag: &str| {
        answer(
            &format!("200 OK\r\nContent-Length: 160000\r\n{etag}"),
            &old[..60_000],
        )
    };
    let part = |headers: &str| {
        answer(
            &format!("206 Partial\r\nContent-Length: 100000\r\n{headers}"),
            &new[60_000..],
        )
    };
    let whole = || ok("\r\nETag: \"two\"", &new);
    for (name, replies) in [
        (
            "the server sends the new file",
            vec![cut("ETag: \"one\""), whole()],
        ),
        (
            "another ETag",
            vec![
                cut("ETag: \"one\""),
                part("Content-Range: bytes 60000-159999/160000\r\nETag: \"two\""),
                whole(),
            ],
        ),
        (
            "another place",
            vec![
                cut("ETag: \"one\""),
                part("Content-Range: bytes 50000-149999/160000"),
                whole(),
            ],
        ),
        (
            "another length",
            vec![
                cut("ETag: \"one\""),
                part("Content-Range: bytes 60000-159999/170000"),
                whole(),
            ],
        ),
        (
            "no place",
            vec![cut("ETag: \"one\""), part("X: y"), whole()],
        ),
        (
            "no range any more",
            vec![cut("ETag: \"one\""), answer("416 No", b""), whole()],
        ),
        (
            "a part unasked for",
            vec![part("Content-Range: bytes 60000-159999/160000"), whole()],
        ),
        ("weak ETag", vec![cut("ETag: W/\"one\""), whole()]),
        (
            "too fresh",
            vec![
                cut(
                    "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT",
                ),
                whole(),
            ],
        ),
    ] {
        let server = Server::start(replies);
        assert_eq!(fetch(&server, "", &impatient()).0.unwrap(), new, "{name}");
        let last = server.requests().pop().unwrap();
        assert_eq!(
            last.contains("range:"),
            name == "the server sends the new file",
            "{name}: {last}"
        );
    }
}

#[test]
fn a_part_unasked_for_that_is_all_of_the_file_is_taken() {
    for range in [
        "X: y",
        "Content-Range: bytes 0-159999/160000",
        "Content-Range: bytes 0-159999/*",
    ] {
        let head = format!("206 Partial\r\nContent-Length: 160000\r\nETag: \"one\"\r\n{range}");
        // Cut, and then as asked for: the part counts as a beginning like any other.
        let rest = "206 Partial\r\nContent-Range: bytes 60000-159999/160000\r\nETag: \"one\"";
        for replies in [
            vec![answer(&head, &body())],
            vec![
                answer(&head, &body()[..60_000]),
                answer(rest, &body()[60_000..]),
            ],
        ] {
            let tries = replies.len();
            let server = Server::start(replies);
            assert_eq!(
                fetch(&server, "", &impatient()).0.unwrap(),
                body(),
                "{range}"
            );
            assert_eq!(server.requests().len(), tries, "{range}");
        }
    }
    for range in [
        "bytes 0-159999/170000",
        "bytes 1-160000/160001",
        "bytes */160000",
        "pages 0-1/2",
    ] {
        let part = format!("206 Partial\r\nContent-Range: {range}");
        let server = Server::start(vec![answer(&part, &body()), ok("", b"whole")]);
        assert_eq!(
            fetch(&server, "", &impatient()).0.unwrap(),
            b"whole",
            "{range}"
        );
    }
}

#[test]
fn a_sloppy_head_is_read() {
    for sloppy in [
        "X-Foo : 1",
        "X-Foo: a\r\n b",
        "no header",
        "X-Foo: \u{e9}",
        "Bad Name: 1",
    ] {
        let server = Server::start(vec![ok(&format!("\r\n{sloppy}\r\nX-Bar: 1"), &body())]);
        assert_eq!(
            fetch(&server, "", &impatient()).0.unwrap(),
            body(),
            "{sloppy:?}"
        );
    }
}

#[test]
fn a_cut_chunked_body_is_not_taken_for_whole() {
    let server = Server::start(vec![
        answer("200 OK\r\nTransfer-Encoding: chunked", b"4\r\nabcd\r\n"),
        answer(
            "200 OK\r\nTransfer-Encoding: chunked",
            b"4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n",
        ),
    ]);
    assert_eq!(fetch(&server, "", &impatient()).0.unwrap(), b"abcdef");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_content_encoding_is_undone_and_a_cut_one_resumed() {
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    let level = flate2::Compression::default();
    let mut gzip = GzEncoder::new(Vec::new(), level);
    gzip.write_all(&body()).unwrap();
    let gzip = gzip.finish().unwrap();
    let mut zlib = ZlibEncoder::new(Vec::new(), level);
    zlib.write_all(&body()).unwrap();
    let mut bare = DeflateEncoder::new(Vec::new(), level);
    bare.write_all(&body()).unwrap();
    let half = gzip.len() / 2;
    let range = format!(
        "206 Partial\r\nContent-Encoding: gzip\r\nContent-Range: bytes {half}-/{}",
        gzip.len()
    );
    let range = range.replace("-/", &format!("-{}/", gzip.len() - 1));
    let cut = format!(
        "200 OK\r\nContent-Encoding: gzip\r\nETag: \"one\"\r\nContent-Length: {}",
        gzip.len()
    );
    for (name, replies) in [
        ("gzip", vec![ok("\r\nContent-Encoding: gzip", &gzip)]),
        (
            "zlib",
            vec![ok("\r\nContent-Encoding: deflate", &zlib.finish().unwrap())],
        ),
        (
            "bare",
            vec![ok("\r\nContent-Encoding: Deflate", &bare.finish().unwrap())],
        ),
        (
            "resumed",
            vec![answer(&cut, &gzip[..half]), answer(&range, &gzip[half..])],
        ),
        (
            "cut, its length unknown",
            vec![
                answer("200 OK\r\nContent-Encoding: gzip", &gzip[..half]),
                answer("200 OK\r\nContent-Encoding: gzip", &gzip),
            ],
        ),
    ] {
        let server = Server::start(replies);
        assert_eq!(
            fetch(&server, "", &impatient()).0.unwrap(),
            body(),
            "{name}"
        );
    }
}

#[test]
fn what_follows_the_members_of_a_gzip_file_is_ignored() {
    use flate2::write::GzEncoder;
    let member = |content: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    };
    let (first, second) = (member(b"first "), member(b"second"));
    let both = [&first[..], &second].concat();
    for (name, encoded, expected) in [
        ("two", both.clone(), Some(&b"first second"[..])),
        (
            "an empty one between",
            [&first[..], &member(b""), &second].concat(),
            Some(b"first second"),
        ),
        (
            "zeros",
            [&both[..], &[0; 512]].concat(),
            Some(b"first second"),
        ),
        (
            "junk",
            [&both[..], b"\r\n<!-- served by -->"].concat(),
            Some(b"first second"),
        ),
        (
            "half a signature",
            [&both[..], b"\x1f"].concat(),
            Some(b"first second"),
        ),
        ("none", b"no gzip".to_vec(), None),
        ("a cut one", first[..first.len() - 9].to_vec(), None),
    ] {
        let server = Server::start(vec![ok("\r\nContent-Encoding: gzip", &encoded)]);
        let result = fetch(&server, "", &impatient()).0;
        assert_eq!(result.ok().as_deref(), expected, "{name}");
    }
}

#[test]
fn an_unknown_content_encoding_leaves_the_bytes_as_they_are() {
    use flate2::write::GzEncoder;
    for encoding in [
        "utf-8",
        "aws-chunked",
        "application/zip",
        "none",
        "br",
        "UTF-8, binary",
    ] {
        let server = Server::start(vec![ok(
            &format!("\r\nContent-Encoding: {encoding}"),
            &body(),
        )]);
        assert_eq!(
            fetch(&server, "", &impatient()).0.unwrap(),
            body(),
            "{encoding}"
        );
    }
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&body()).unwrap();
    let server = Server::start(vec![ok(
        "\r\nContent-Encoding: gzip, aws-chunked",
        &gzip.finish().unwrap(),
    )]);
    assert_eq!(fetch(&server, "", &impatient()).0.unwrap(), body());
}

#[test]
fn redirects_are_followed_boundedly_and_tell_no_secrets() {
    let target = Server::start(vec![ok("", &body())]);
    let server = Server::start(vec![answer(
        &format!("302 Found\r\nLocation: {}?new", target.url()),
        b"",
    )]);
    assert_eq!(
        fetch(&server, &format!("?sig={SECRET}"), &impatient())
            .0
            .unwrap(),
        body()
    );
    assert!(
        !target.requests()[0].contains(SECRET),
        "{:?}",
        target.requests()
    );

    let server = Server::start(vec![answer("302 Found\r\nLocation: /again?s3cr3t", b"")]);
    let patience = Patience {
        redirects: 3,
        ..impatient()
    };
    let error = fetch(&server, "", &patience).0.unwrap_err();
    assert!(
        error.to_string().contains("redirect") && !format!("{error:?}").contains(SECRET),
        "{error:?}"
    );
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn silence_is_a_timeout_and_cancelled_at_once() {
    for head in [
        "",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
    ] {
        let (reply, _) = silence(head.into());
        let server = Server::start(vec![reply]);
        let patience = Patience {
            stall: Duration::from_millis(200),
            tries: 2,
            ..impatient()
        };
        assert_eq!(
            failure(&fetch(&server, "", &patience).0.unwrap_err()),
            DownloadFailure::Timeout,
            "{head:?}"
        );

        let (reply, silent) = silence(head.into());
        let server = Server::start(vec![reply]);
        let (task, _said) = task();
        let cancel = task.cancel.clone();
        let canceller = std::thread::spawn(move || {
            silent.recv().unwrap();
            cancel.cancel();
        });
        let folder = tempfile::tempdir().unwrap();
        let url = RedactedUrl::parse(&server.url()).unwrap();
        // With the usual patience of a minute, only the cancellation can end this.
        let result = download(&url, &folder.path().join("a"), &Patience::default(), &task);
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        canceller.join().unwrap();
    }
}

#[test]
fn a_drip_is_a_stall() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n";
    let server = Server::start(vec![Reply::Drip(head.to_vec())]);
    let patience = Patience {
        stall: Duration::from_millis(300),
        tries: 1,
        ..impatient()
    };
    let error = fetch(&server, "", &patience).0.unwrap_err();
    assert_eq!(failure(&error), DownloadFailure::Timeout);
    assert!(error.to_string().contains("bytes in 0.3 s"), "{error}");
}

#[test]
fn a_zip_larger_than_the_limit_is_refused_with_both_numbers() {
    let patience = Patience {
        limit_bytes: 100_000,
        ..impatient()
    };
    let unknown_length = answer("200 OK", &body());
    for reply in [ok("", &body()), unknown_length] {
        let server = Server::start(vec![reply, answer("500 Not again", b"")]);
        let error = fetch(&server, "", &patience).0.unwrap_err().to_string();
        assert!(error.contains("100000 allowed"), "{error}");
    }
    let server = Server::start(vec![answer(
        "200 OK\r\nContent-Length: 999999999999999",
        b"",
    )]);
    let patience = Patience {
        limit_bytes: u64::MAX,
        ..impatient()
    };
    let error = fetch(&server, "", &patience).0.unwrap_err();
    assert!(
        matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("needs 999999999999999 bytes"),
        "{error}"
    );
}

#[test]
fn a_reply_that_is_no_http_is_a_connection_failure() {
    let server = Server::start(vec![Reply::Bytes(b"220 this is mail\r\n".to_vec())]);
    assert_eq!(
        failure(&fetch(&server, "", &impatient()).0.unwrap_err()),
        DownloadFailure::Connection
    );
}
