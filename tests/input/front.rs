//! Requests as proxies, browsers and old clients really send them, byte by byte.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::Duration;

use prometheus::{Encoder as _, TextEncoder};

use crate::http::{Answer, Served};

const BUY: &str = "POST /seckill/seckill";

/// Sends `request`, whose lines are separated by `|`, and reads one answer.
fn ask(shop: &Served, request: &str) -> Answer {
    Answer::read(&shop.send(request.replace('|', "\r\n").as_bytes()))
}

fn code(answer: &Answer) -> String {
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    body["code"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_post_without_a_length_is_a_post_without_a_body() {
    let shop = Served::start();
    for request in [
        format!("{BUY} HTTP/1.0||"),
        format!("{BUY} HTTP/1.0|Host: shop|Connection: close||"),
        format!("{BUY} HTTP/1.0|Host: shop|Content-Length: 0||"),
        format!("{BUY} HTTP/1.0|Host: shop|Content-Length: 2||{{}}"),
        format!("{BUY}?item=counter HTTP/1.0|Idempotency-Key: k||"),
        format!("{BUY} HTTP/1.1|Host: shop|Connection: close||"),
    ] {
        let answer = ask(&shop, &request);
        assert_eq!((answer.status, code(&answer).as_str()), (200, "success"), "{request}: {}", answer.head);
    }
    assert_eq!(shop.sold(), 6);

    // In pieces, and twice on one connection.
    let mut stream = TcpStream::connect(shop.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for _ in 0..2 {
        for piece in [BUY, " HTTP/1", ".0\r\nConnection: keep-ali", "ve\r\n\r", "\n"] {
            stream.write_all(piece.as_bytes()).unwrap();
            sleep(Duration::from_millis(30));
        }
        let mut answer = [0; 1024];
        let read = stream.read(&mut answer).unwrap();
        let answer = Answer::read(&answer[..read]);
        assert_eq!((answer.status, code(&answer).as_str()), (200, "success"), "{}", answer.head);
    }
    assert_eq!(shop.sold(), 8);
}

#[test]
fn nobody_is_upgraded_and_the_connection_is_kept() {
    let shop = Served::start();
    for wish in ["Connection: upgrade", "Connection: keep-alive, Upgrade|Upgrade: websocket", "Upgrade: h2c"]
    {
        let twice = format!("GET /seckill/now HTTP/1.1|Host: shop|{wish}||").replace('|', "\r\n");
        let mut stream = TcpStream::connect(shop.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for _ in 0..2 {
            stream.write_all(twice.as_bytes()).unwrap();
            let mut answer = [0; 1024];
            let read = stream.read(&mut answer).unwrap();
            let answer = Answer::read(&answer[..read]);
            assert_eq!(answer.status, 200, "{wish}");
            assert!(
                !answer.head.contains("connection:") && !answer.head.contains("upgrade"),
                "{}",
                answer.head
            );
        }
    }
}

#[test]
fn what_the_library_refuses_is_said_in_our_form_and_counted() {
    let shop = Served::start();
    let long = "x".repeat(200_000);
    for (request, status, said) in [
        ("nonsense||".to_owned(), 400, "bad_request"),
        ("GET / HTTP/1.1||".to_owned(), 400, "bad_request"),
        (format!("{BUY} HTTP/1.1|Host: s|Content-Length: x||"), 400, "bad_request"),
        (format!("{BUY} HTTP/1.1|Host: s|Transfer-Encoding: gzip||"), 400, "bad_request"),
        (format!("GET / HTTP/1.1|Host: s|X: {long}"), 431, "too_large"),
        // After an answer of ours, in one go.
        ("GET /seckill/now HTTP/1.1|Host: s||nonsense||".to_owned(), 200, ""),
    ] {
        let answer = ask(&shop, &request);
        assert_eq!((answer.status, code(&answer).as_str()), (status, said), "{}", answer.head);
        if status != 200 {
            assert!(answer.head.contains("application/problem+json; charset=utf-8"), "{}", answer.head);
            assert!(answer.head.contains("connection: close"), "{}", answer.head);
        } else {
            assert!(answer.body.contains("\"bad_request\""), "{}", answer.body);
        }
    }
    let counted = metrics(&shop);
    assert!(counted.contains("seckill_http_refusals_total{status=\"400\"} 5"), "{counted}");
    assert!(counted.contains("seckill_http_refusals_total{status=\"431\"} 1"), "{counted}");
}

fn metrics(shop: &Served) -> String {
    let mut text = Vec::new();
    TextEncoder::new().encode(&shop.registry.gather(), &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn every_counter_is_there_before_it_counts_and_no_zero_is_measured() {
    let shop = Served::start();
    let before = metrics(&shop);
    for outcome in ["success", "sold_out", "pending", "closed", "bad_request", "cross_site"] {
        assert!(before.contains(&format!("seckill_attempts_total{{outcome=\"{outcome}\"}} 0")), "{before}");
    }
    assert!(before.contains("seckill_purchase_duration_seconds_bucket{le=\"0.001\"}"), "{before}");
    assert!(before.contains("seckill_purchase_duration_seconds_bucket{le=\"5\"}"), "{before}");
}

#[test]
fn files_are_packed_tagged_and_kept_under_names_that_last() {
    let shop = Served::start();
    let get = |path: &str, headers: &str| {
        ask(&shop, &format!("GET {path} HTTP/1.1|Host: s|Connection: close|{headers}|"))
    };
    let line = |answer: &Answer, name: &str| {
        let start = format!("{name}: ");
        answer.head.lines().find_map(|line| line.strip_prefix(&start).map(str::to_owned)).unwrap_or_default()
    };
    let page = get("/", "");
    let mut paths: Vec<String> = page
        .body
        .split('"')
        .filter(|part| part.ends_with(".js") || part.ends_with(".css") || part.ends_with(".svg"))
        .map(|name| format!("/{name}"))
        .collect();
    assert!(paths.len() >= 5 && paths.iter().all(|path| path.matches('.').count() == 2), "{paths:?}");
    let mut bytes = 0;
    for path in &paths {
        let kept = get(path, "");
        assert_eq!(
            (kept.status, line(&kept, "cache-control").as_str()),
            (200, "public, max-age=31536000, immutable"),
            "{path}"
        );
        bytes += line(&get(path, "Accept-Encoding: gzip, br|"), "content-length").parse::<usize>().unwrap();
    }
    paths.push("/".into());
    let first = line(&get("/", "Accept-Encoding: br|"), "content-length").parse::<usize>().unwrap();
    assert!(first <= 1_400, "the first words come with the first packet: {first} bytes");
    assert!(bytes + first <= 25 * 1024, "{bytes} bytes in all");
    for path in paths.iter().map(String::as_str).chain(["/app.js", "/style.css"]) {
        let mut tags = Vec::new();
        for (accepts, packed) in [
            ("", ""),
            ("gzip", "gzip"),
            ("gzip, deflate, br", "br"),
            ("br;q=0, gzip;q=0.5", "gzip"),
            ("identity", ""),
        ] {
            let answer = get(path, &format!("Accept-Encoding: {accepts}|"));
            assert_eq!(
                (answer.status, line(&answer, "content-encoding").as_str()),
                (200, packed),
                "{path} {accepts}"
            );
            assert_eq!(line(&answer, "vary"), "accept-encoding", "{path}");
            let tag = line(&answer, "etag");
            for known in [tag.clone(), format!("\"other\", W/{tag}"), "*".into()] {
                let same = get(path, &format!("Accept-Encoding: {accepts}|If-None-Match: {known}|"));
                assert_eq!(
                    (same.status, same.body.as_str(), line(&same, "etag")),
                    (304, "", tag.clone()),
                    "{path} {known}"
                );
            }
            assert_eq!(
                get(path, &format!("Accept-Encoding: {accepts}|If-None-Match: \"other\"|")).status,
                200
            );
            tags.push((packed, tag));
        }
        tags.sort();
        tags.dedup();
        assert_eq!(tags.len(), 3, "a tag stands for the very bytes: {tags:?}");
    }
    // While nodes are replaced one by one, a page asks this one for the files of another version.
    for (other, file) in
        [("/app.0123456789abcdef.js", "/app.js"), ("/style.0123456789abcdef.css", "/style.css")]
    {
        let (ours, theirs) = (get(file, ""), get(other, ""));
        assert_eq!(
            (theirs.status, &theirs.body, line(&theirs, "etag")),
            (200, &ours.body, line(&ours, "etag"))
        );
        assert_eq!(line(&theirs, "cache-control"), "no-cache", "{other}");
    }
    for nothing in
        ["/app.0123.js", "/none.0123456789abcdef.js", "/app.0123456789abcdef.js/", "/app.0123456789abcdeg.js"]
    {
        assert_eq!(get(nothing, "").status, 404, "{nothing}");
    }
}

#[test]
fn methods() {
    let shop = Served::start();
    let order = "/seckill/orders/01970000-0000-7000-8000-000000000001";
    for (path, allow) in [
        ("/", "get, head, options"),
        ("/seckill/getCount", "get, head, options"),
        ("/seckill/now", "get, head, options"),
        (order, "get, head, options"),
        ("/seckill/seckill", "post, options"),
    ] {
        for (method, status) in [("OPTIONS", 204), ("DELETE", 405)] {
            let answer = ask(&shop, &format!("{method} {path} HTTP/1.1|Host: s|Connection: close||"));
            assert_eq!(answer.status, status, "{method} {path}");
            assert!(answer.head.contains(&format!("allow: {allow}")), "{method} {path}: {}", answer.head);
        }
        if !allow.contains("get") {
            continue;
        }
        let read = ask(&shop, &format!("GET {path} HTTP/1.1|Host: s|Connection: close||"));
        let head = ask(&shop, &format!("HEAD {path} HTTP/1.1|Host: s|Connection: close||"));
        assert_eq!(head.status, read.status, "{path}");
        assert!(head.body.is_empty(), "{path}: {}", head.body);
        for line in ["content-length: ", "content-type: "] {
            let line = read.head.lines().find(|of| of.starts_with(line)).unwrap();
            assert!(head.head.contains(line), "{path}: {}", head.head);
        }
    }
}

#[test]
fn what_stands_in_the_wrong_place_is_said_and_buys_nothing() {
    let shop = Served::start();
    for (line, headers, body) in [
        ("?Item=counter", "", ""),
        ("?items=counter", "", ""),
        ("?item=counter&idempotency-key=1", "", ""),
        ("", "", "item=counter"),
        ("", "Content-Type: application/json|", "{\"item\": \"counter\"}"),
        ("", "Content-Type: application/json|", "{\"Item\": \"counter\"}"),
        ("", "", "a=b&idempotencyKey=7"),
        ("", "", "--x|Content-Disposition: form-data; name=\"item\"||counter|--x--"),
    ] {
        let body = body.replace('|', "\r\n");
        let length = body.len();
        let answer = ask(
            &shop,
            &format!(
                "{BUY}{line} HTTP/1.1|Host: s|Connection: close|{headers}Content-Length: {length}||{body}"
            ),
        );
        assert_eq!((answer.status, code(&answer).as_str()), (400, "bad_request"), "{line} {body}");
        assert!(answer.body.contains("?item=NAME") || answer.body.contains("as a header"), "{}", answer.body);
    }
    assert_eq!(shop.sold(), 0);
    // What clients send out of habit is nobody's parameter.
    for body in ["{}", "a=b", "null", "[1]", "\u{0}"] {
        let length = body.len();
        let answer =
            ask(&shop, &format!("{BUY} HTTP/1.1|Host: s|Connection: close|Content-Length: {length}||{body}"));
        assert_eq!(code(&answer), "success", "{body}");
    }
}

#[test]
fn a_page_of_another_site_buys_nothing() {
    let shop = Served::start();
    let buy = |headers: &str| ask(&shop, &format!("{BUY} HTTP/1.1|Connection: close|{headers}||"));
    for elsewhere in [
        "Host: s|Sec-Fetch-Site: cross-site",
        "Host: s|Sec-Fetch-Site: same-site|Origin: http://a.s",
        "Host: s|Sec-Fetch-Site: cross-site|Origin: http://s",
        "Host: s|Origin: http://elsewhere.example",
        "Host: s|Origin: null",
        "Host: s:3030|Origin: http://s",
        "Host: s|Idempotency-Key: k|Sec-Fetch-Site: cross-site",
    ] {
        let answer = buy(elsewhere);
        assert_eq!((answer.status, code(&answer).as_str()), (403, "cross_site"), "{elsewhere}");
        assert!(answer.body.contains("SECKILL_ALLOWED_ORIGINS"), "{}", answer.body);
    }
    assert_eq!(shop.sold(), 0);
    for here in [
        "Host: s",
        "Host: s|Sec-Fetch-Site: same-origin|Origin: http://s",
        "Host: s|Sec-Fetch-Site: none",
        "Host: S:3030|Origin: http://s:3030",
        "Host: s|Origin: https://s",
        "Host: upstream|X-Forwarded-Host: s|Origin: https://s",
        "Host: s|Sec-Fetch-Site: cross-site|Origin: https://shop.example",
    ] {
        assert_eq!(code(&buy(here)), "success", "{here}");
    }
    assert!(metrics(&shop).contains("seckill_attempts_total{outcome=\"cross_site\"} 7"));
}

#[test]
fn a_page_of_an_allowed_site_may_read_its_answers() {
    let shop = Served::start();
    let ask = |line: &str, headers: &str| {
        ask(&shop, &format!("{line} HTTP/1.1|Host: s|Connection: close|{headers}|"))
    };
    let guest = "Origin: https://shop.example|Sec-Fetch-Site: cross-site|";
    let welcome = "access-control-allow-origin: https://shop.example";
    // What a browser asks first, and then.
    let first = ask("OPTIONS /seckill/seckill", &format!("{guest}Access-Control-Request-Method: POST|"));
    assert_eq!(first.status, 204);
    for line in [
        welcome,
        "access-control-allow-methods: post, options",
        "access-control-allow-headers: idempotency-key, content-type",
        "vary: origin",
    ] {
        assert!(first.head.contains(line), "{line}: {}", first.head);
    }
    for line in [BUY, "GET /seckill/now", "GET /seckill/orders/none", "GET /nowhere"] {
        let answer = ask(line, guest);
        assert!(answer.head.contains(welcome), "{line}: {}", answer.head);
        assert!(
            answer.head.contains("access-control-expose-headers: location, retry-after"),
            "{line}: {}",
            answer.head
        );
    }
    for headers in ["", "Origin: https://elsewhere.example|", "Origin: null|"] {
        let answer = ask("GET /seckill/now", headers);
        assert!(answer.head.contains("vary: origin"), "{headers}: {}", answer.head);
        assert!(!answer.head.contains("access-control"), "{headers}: {}", answer.head);
        // What caches keep is for everybody, and one copy of it is enough.
        let count = ask("GET /seckill/getCount", headers);
        assert!(count.head.contains("access-control-allow-origin: *"), "{headers}: {}", count.head);
        assert!(!count.head.contains("vary"), "{headers}: {}", count.head);
    }
}
