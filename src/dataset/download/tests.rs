use std::io::{self, Write};
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, HeaderValue};

use super::failure::retry_after;
use super::partial::ContentRange;
use super::*;
use crate::dataset::archive::Limits;
use crate::dataset::samples::{Reply, Server, answer, jpeg, lines, ok, silence, task, zip_of};
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

/// A zip that arrives in the folder.
fn arrival(folder: &std::path::Path) -> Arrival {
    Arrival::create(&folder.join("images.zip"), folder, &Limits::default(), true).unwrap()
}

/// Fetches from the server's URL with `suffix`; what arrived, or the error.
fn fetch(
    server: &Server,
    suffix: &str,
    patience: &Patience,
) -> (Result<Vec<u8>, Error>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let (task, said) = task();
    let url = RedactedUrl::parse(&format!("{}{suffix}", server.url())).unwrap();
    let to = arrival(folder.path());
    let result = download(&url, to, patience, &task).map(|downloaded| {
        let mut content = Vec::new();
        downloaded.zip.reader().read_to_end(&mut content).unwrap();
        assert_eq!(downloaded.zip.bytes(), content.len() as u64);
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
        assert!(matches!(error, Error::InvalidUrl(_)), "{text}");
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
    download(&url, arrival(folder.path()), &impatient(), &task().0).unwrap();
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
    let error = download(&url, arrival(folder.path()), &impatient(), &task().0).unwrap_err();
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
            "another day",
            vec![
                cut(
                    "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nDate: Tue, 02 Jan 2024 00:00:00 GMT",
                ),
                part(
                    "Content-Range: bytes 60000-159999/160000\r\nLast-Modified: Tue, 02 Jan 2024 00:00:00 GMT",
                ),
                whole(),
            ],
        ),
        (
            "now encoded",
            vec![
                cut("ETag: \"one\""),
                part("Content-Range: bytes 60000-159999/160000\r\nContent-Encoding: gzip"),
                whole(),
            ],
        ),
        (
            "a part that makes no sense",
            vec![
                cut("ETag: \"one\""),
                part("Content-Range: bytes 60000-159999/159999"),
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
fn without_a_strong_validator_there_is_nothing_to_go_on_by() {
    const DAY: &str = "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT";
    for (name, validator) in [
        ("none", "X: y".to_owned()),
        ("weak ETag", "ETag: W/\"one\"".to_owned()),
        ("no clock", DAY.to_owned()),
        (
            "too fresh",
            format!("{DAY}\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT"),
        ),
        (
            "from the future",
            format!("{DAY}\r\nDate: Sun, 31 Dec 2023 00:00:00 GMT"),
        ),
        ("no date", "Last-Modified: x\r\nDate: y".to_owned()),
    ] {
        let server = Server::start(vec![
            answer(
                &format!("200 OK\r\nContent-Length: 160000\r\n{validator}"),
                &body()[..60_000],
            ),
            ok("", &body()),
        ]);
        assert_eq!(
            fetch(&server, "", &impatient()).0.unwrap(),
            body(),
            "{name}"
        );
        assert!(!server.requests()[1].contains("range:"), "{name}");
    }
}

#[test]
fn a_length_that_only_the_part_tells_is_kept_to() {
    let whole = body();
    let part = |first: usize, last: usize| {
        let head = format!("206 Partial\r\nContent-Range: bytes {first}-{last}/160000");
        answer(&head, &whole[first..=last])
    };
    let server = Server::start(vec![
        answer(
            "200 OK\r\nTransfer-Encoding: chunked\r\nETag: \"one\"",
            &[b"EA60\r\n", &whole[..60_000], b"\r\n"].concat(),
        ),
        part(60_000, 99_999),
        part(100_000, 159_999),
    ]);
    assert_eq!(fetch(&server, "", &impatient()).0.unwrap(), whole);
}

#[test]
fn more_than_was_promised_starts_over() {
    let whole = body();
    let server = Server::start(vec![
        answer(
            "200 OK\r\nContent-Length: 160000\r\nETag: \"one\"",
            &whole[..60_000],
        ),
        answer(
            "206 Partial\r\nContent-Range: bytes 60000-159999/160000",
            &[&whole[60_000..], b"and more"].concat(),
        ),
        ok("", &whole),
    ]);
    let (result, warnings) = fetch(&server, "", &impatient());
    assert_eq!(result.unwrap(), whole);
    assert!(
        warnings[1].contains("160008 of 160000 bytes arrived"),
        "{warnings:?}"
    );
    assert!(!server.requests()[2].contains("range:"));
}

/// The client stops reading where the promise ends, so that what is beyond shows in the zip alone.
#[test]
fn a_zip_without_its_end_is_fetched_again_once() {
    let zip = zip_of([("a.jpg", jpeg(1, 1))]);
    let promising = |bytes: usize| answer(&format!("200 OK\r\nContent-Length: {bytes}"), &zip);
    let short = zip.len() - 9;
    let cut_without_length = || answer("200 OK", &zip[..short]);
    for (name, replies, tries, expected) in [
        ("short", vec![promising(short), ok("", &zip)], 2, &zip[..]),
        (
            "short, then shorter",
            vec![promising(short), promising(short - 9), ok("", &zip)],
            3,
            &zip,
        ),
        (
            "cut, its length unknown",
            vec![cut_without_length(), ok("", &zip)],
            2,
            &zip,
        ),
        ("always short", vec![promising(short)], 2, &zip[..short]),
        (
            "a comment",
            vec![ok("", &[&zip[..], b"comment"].concat())],
            1,
            &[&zip[..], b"comment"].concat(),
        ),
        ("no zip", vec![ok("", b"<html>")], 1, b"<html>"),
        ("nothing", vec![ok("", b"")], 1, b""),
    ] {
        let server = Server::start(replies);
        let (result, warnings) = fetch(&server, "", &impatient());
        assert_eq!(result.unwrap(), expected, "{name}");
        assert_eq!(server.requests().len(), tries, "{name}");
        assert_eq!(warnings.len(), tries - 1, "{name}");
    }
}

#[test]
fn a_file_that_changes_with_every_try_is_given_up() {
    let server = Server::answering(|number, _| {
        let head = format!("200 OK\r\nContent-Length: 160000\r\nETag: \"{number}\"");
        answer(&head, &body()[..90_000])
    });
    let error = fetch(&server, "", &impatient()).0.unwrap_err();
    assert_eq!(failure(&error), DownloadFailure::Connection);
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn a_head_that_never_ends_is_a_stall() {
    for beginning in ["HTTP/1.1 200 OK\r\nX: ", "HTTP/1.1 200 "] {
        let server = Server::start(vec![Reply::Drip(beginning.into())]);
        let patience = Patience {
            stall: Duration::from_millis(300),
            tries: 1,
            ..impatient()
        };
        let error = fetch(&server, "", &patience).0.unwrap_err();
        assert_eq!(failure(&error), DownloadFailure::Timeout, "{error}");
    }
}

#[test]
fn the_whole_may_take_longer_than_a_stall() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n";
    let server = Server::start(vec![Reply::Drip(head.to_vec())]);
    let patience = Patience {
        stall: Duration::from_millis(300),
        window_bytes: 2,
        tries: 1,
        ..impatient()
    };
    let started = Instant::now();
    assert_eq!(fetch(&server, "", &patience).0.unwrap(), [b'.'; 100]);
    assert!(started.elapsed() > patience.stall);
}

#[test]
fn what_an_encoding_inflates_to_is_limited() {
    use flate2::write::GzEncoder;
    let packed = |content: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    };
    let zeros = packed(&vec![0; 1 << 20]);
    for (name, patience, expected) in [
        (
            "size",
            Patience {
                limit_bytes: 100_000,
                ..impatient()
            },
            "100000 allowed",
        ),
        (
            "ratio",
            Patience {
                ratio_free_bytes: 100_000,
                ..impatient()
            },
            "100 times is allowed",
        ),
    ] {
        let server = Server::start(vec![ok("\r\nContent-Encoding: gzip", &zeros)]);
        let error = fetch(&server, "", &patience).0.unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
        assert_eq!(server.requests().len(), 1, "{name}");
    }
    let many = "\r\nContent-Encoding: gzip, gzip, gzip\r\nContent-Encoding: gzip, gzip, gzip";
    let server = Server::start(vec![ok(many, &zeros)]);
    let error = fetch(&server, "", &impatient()).0.unwrap_err().to_string();
    assert!(error.contains("6 times over"), "{error}");
}

#[test]
fn what_is_promised_in_the_readme() {
    let Patience {
        tries,
        first_pause,
        longest_pause,
        stall,
        window_bytes,
        redirects,
        limit_bytes,
        ..
    } = Patience::default();
    let readme = include_str!("../../../README.md");
    for promise in [
        format!("{} s without a byte", stall.as_secs()),
        format!(
            "fewer than {} KiB in {} s",
            window_bytes >> 10,
            stall.as_secs()
        ),
        format!("{tries} tries"),
        format!("{} s before the second try", first_pause.as_secs_f32()),
        format!("up to {} s", longest_pause.as_secs()),
        format!("{redirects} redirects"),
        format!("{} GiB", limit_bytes >> 30),
    ] {
        assert!(readme.contains(&promise), "{promise}");
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
    let empty = "206 Partial\r\nContent-Length: 0\r\nContent-Range: bytes 0-4/5";
    let server = Server::start(vec![answer(empty, b""), ok("", b"whole")]);
    assert_eq!(fetch(&server, "", &impatient()).0.unwrap(), b"whole");
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
        "Content-Range: bytes 0-4/5",
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
fn a_length_beside_chunks_means_nothing() {
    let head = "200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked";
    let server = Server::start(vec![answer(head, b"4\r\nabcd\r\n0\r\n\r\n")]);
    assert_eq!(fetch(&server, "", &impatient()).0.unwrap(), b"abcd");
    assert_eq!(server.requests().len(), 1);
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
        let result = download(&url, arrival(folder.path()), &Patience::default(), &task);
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        canceller.join().unwrap();
    }
}

#[test]
fn a_drip_is_a_stall() {
    // From the start, and behind a window that was full enough.
    for burst in [0, 5000] {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", burst + 200);
        let beginning = [head.into_bytes(), vec![b'.'; burst]].concat();
        let server = Server::start(vec![Reply::Drip(beginning)]);
        let patience = Patience {
            stall: Duration::from_millis(300),
            tries: 1,
            ..impatient()
        };
        let error = fetch(&server, "", &patience).0.unwrap_err();
        assert_eq!(failure(&error), DownloadFailure::Timeout);
        assert!(error.to_string().contains("bytes in 0.3 s"), "{error}");
    }
}

#[test]
fn a_zip_larger_than_the_limit_is_refused_with_both_numbers() {
    let patience = Patience {
        limit_bytes: 100_000,
        ..impatient()
    };
    let unknown_length = answer("200 OK", &body());
    let only_promised = answer("200 OK\r\nContent-Length: 100001", b"");
    for reply in [ok("", &body()), unknown_length, only_promised] {
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

mod properties {
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    /// What a server does with one request, whatever it is asked.
    #[derive(Clone, Debug)]
    enum Act {
        Serves,
        Cuts(u16),
        IgnoresRange,
        /// And says which version it sends a part of.
        IgnoresIfRange,
        ShiftsRange(i8),
        SendsAPart(u16),
        SaysNoRange,
        LiesOnLength(u8),
        Chunks {
            cut: Option<u16>,
        },
        Gzips {
            cut: Option<u16>,
        },
        Refuses(u16),
        SaysNothing,
    }

    fn act() -> impl Strategy<Value = Act> {
        let cut = || proptest::option::of(any::<u16>());
        prop_oneof![
            Just(Act::Serves),
            any::<u16>().prop_map(Act::Cuts),
            any::<u16>().prop_map(Act::Cuts),
            Just(Act::IgnoresRange),
            Just(Act::IgnoresIfRange),
            any::<i8>().prop_map(Act::ShiftsRange),
            any::<u16>().prop_map(Act::SendsAPart),
            Just(Act::SaysNoRange),
            any::<u8>().prop_map(Act::LiesOnLength),
            cut().prop_map(|cut| Act::Chunks { cut }),
            cut().prop_map(|cut| Act::Gzips { cut }),
            prop_oneof![Just(416), Just(500), Just(503), Just(429)].prop_map(Act::Refuses),
            Just(Act::SaysNothing),
        ]
    }

    /// How a server tells its versions apart.
    #[derive(Clone, Copy, Debug)]
    enum Validator {
        Strong,
        Weak,
        Modified,
        None,
    }

    impl Validator {
        fn of(self, version: usize) -> String {
            match self {
                Self::Strong => format!("\"v{version}\""),
                Self::Weak => format!("W/\"v{version}\""),
                Self::Modified => format!("Mon, 01 Jan 2024 00:00:{version:02} GMT"),
                Self::None => String::new(),
            }
        }

        fn headers(self, version: usize) -> String {
            let validator = self.of(version);
            match self {
                Self::Strong | Self::Weak => format!("\r\nETag: {validator}"),
                Self::Modified => {
                    format!("\r\nLast-Modified: {validator}\r\nDate: Tue, 02 Jan 2024 00:00:00 GMT")
                }
                Self::None => String::new(),
            }
        }
    }

    /// The file's state after `changes` changes: no byte is that of another state.
    fn version(number: usize, lengths: &[u16]) -> Vec<u8> {
        vec![u8::try_from(number + 1).unwrap(); usize::from(lengths[number % lengths.len()])]
    }

    fn up_to(bytes: &[u8], cut: Option<u16>) -> &[u8] {
        let length = cut.map_or(bytes.len(), |cut| usize::from(cut) % (bytes.len() + 1));
        &bytes[..length]
    }

    fn reply(act: &Act, file: &[u8], validator: Validator, version: usize, request: &str) -> Reply {
        let asked = |name: &str| {
            let line = request.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().to_owned())
        };
        let start = asked("range: bytes=").map(|range| {
            let first = range.trim_end_matches('-').parse::<usize>();
            first.unwrap()
        });
        let is_current = asked("if-range:") == Some(validator.of(version).to_lowercase());
        let headers = validator.headers(version);
        let whole = |body: &[u8]| {
            let head = format!("200 OK\r\nContent-Length: {}{headers}", file.len());
            answer(&head, body)
        };
        let part = |first: usize, said: usize, end: usize, total: usize| {
            let body = file.get(first..end).unwrap_or_default();
            let last = (said + body.len()).saturating_sub(1);
            let head = format!(
                "206 Part\r\nContent-Length: {}\r\nContent-Range: bytes {said}-{last}/{total}{headers}",
                body.len()
            );
            answer(&head, body)
        };
        let size = file.len();
        match (act, start) {
            (Act::Refuses(status), _) => answer(&format!("{status} No"), b"no"),
            (Act::SaysNothing, _) => Reply::Bytes(Vec::new()),
            (Act::IgnoresIfRange, Some(start)) if start < size => part(start, start, size, size),
            (Act::ShiftsRange(by), Some(start)) => {
                let first = start.saturating_add_signed(isize::from(*by)).min(size);
                part(first, first, size, size)
            }
            (Act::SendsAPart(bytes), start) => {
                let first = start.filter(|_| is_current).unwrap_or_default().min(size);
                let end = first + up_to(&file[first..], Some(*bytes)).len();
                part(first, first, end, size)
            }
            (Act::SaysNoRange, Some(start)) => {
                let body = file.get(start..).unwrap_or_default();
                answer(&format!("206 Part{headers}"), body)
            }
            (Act::LiesOnLength(more), Some(start)) if start < size => {
                part(start, start, size, size + usize::from(*more))
            }
            (Act::Chunks { cut }, _) => {
                let mut body = Vec::new();
                for chunk in file.chunks(700) {
                    body.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    body.extend(chunk);
                    body.extend(b"\r\n");
                }
                body.extend(b"0\r\n\r\n");
                let head = format!("200 OK\r\nTransfer-Encoding: chunked{headers}");
                answer(&head, up_to(&body, *cut))
            }
            (Act::Gzips { cut }, _) => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(file).unwrap();
                let body = encoder.finish().unwrap();
                let length = body.len();
                let head = format!(
                    "200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {length}{headers}"
                );
                answer(&head, up_to(&body, *cut))
            }
            (Act::IgnoresRange, _) => whole(file),
            (_, Some(start)) if is_current && start >= size => answer("416 No", b""),
            (Act::Cuts(after), Some(start)) if is_current => {
                let head = format!(
                    "206 Part\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{size}",
                    size - start,
                    size - 1
                );
                answer(&head, up_to(&file[start..], Some(*after)))
            }
            (_, Some(start)) if is_current => part(start, start, size, size),
            (Act::Cuts(after), _) => whole(up_to(file, Some(*after))),
            _ => whole(file),
        }
    }

    proptest! {
        // Each case is a download of its own; `make fuzz` tries as many as elsewhere, some nine minutes of them.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn versions_are_never_spliced(
            validator in prop_oneof![
                3 => Just(Validator::Strong),
                2 => Just(Validator::Modified),
                1 => Just(Validator::Weak),
                1 => Just(Validator::None),
            ],
            lengths in proptest::collection::vec(0..5000u16, 1..4),
            script in proptest::collection::vec((proptest::bool::weighted(0.3), act()), 0..12),
        ) {
            let steps = script.clone();
            let of_the_server = lengths.clone();
            let mut changes = 0;
            let server = Server::answering(move |number, request| {
                let (changed, act) = steps.get(number).cloned().unwrap_or((false, Act::Serves));
                changes += usize::from(changed);
                let file = version(changes, &of_the_server);
                reply(&act, &file, validator, changes, request)
            });
            match fetch(&server, "", &impatient()).0 {
                Ok(file) => {
                    let is_one = (0..=script.len()).any(|number| version(number, &lengths) == file);
                    prop_assert!(is_one, "{} bytes: {:?}", file.len(), server.requests());
                }
                Err(error) => prop_assert!(matches!(error, Error::Download { .. }), "{error:?}"),
            }
            // Five in a row that bring nothing, and one for each KiB.
            prop_assert!(server.requests().len() <= 5 * 6);
        }
    }

    proptest! {
        #[test]
        fn a_content_range_is_read_as_it_is_written(
            first in any::<u32>(),
            length in 1..u32::MAX,
            more in proptest::option::of(any::<u32>()),
        ) {
            let first = u64::from(first);
            let last = first + u64::from(length) - 1;
            let total = more.map(|more| last + 1 + u64::from(more));
            let said = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
            let range = ContentRange::parse(&format!("bytes {first}-{last}/{said}"));
            prop_assert_eq!(range, Some(ContentRange { first, last, total }));
        }

        #[test]
        fn no_header_panics(value in "\\PC*|bytes [0-9*]{0,25}-[0-9*]{0,25}/[0-9*]{0,25}") {
            holds(&value);
        }
    }

    #[test]
    fn no_header_of_the_corpus_panics() {
        for lines in [
            include_str!("../../../tests/corpus/headers/content_range"),
            include_str!("../../../tests/corpus/headers/retry_after"),
        ] {
            lines.lines().for_each(holds);
        }
    }

    /// What a header says is taken as it is meant, or not at all.
    fn holds(value: &str) {
        if let Some(range) = ContentRange::parse(value) {
            assert!(range.first <= range.last, "{value:?}");
            assert!(
                range.total.is_none_or(|total| range.last < total),
                "{value:?}"
            );
        }
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(header::RETRY_AFTER, value.clone());
            headers.insert(header::DATE, value.clone());
            headers.insert(header::LAST_MODIFIED, value.clone());
            headers.insert(header::CONTENT_RANGE, value.clone());
            headers.insert(header::CONTENT_ENCODING, value);
        }
        let _ = (
            retry_after(&headers),
            is_whole(&headers),
            Version::of(StatusCode::PARTIAL_CONTENT, &headers),
        );
    }
}
