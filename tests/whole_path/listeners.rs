//! The two HTTP listeners: what each answers, and with which headers.

use reqwest::{Method, Response};

use crate::buyers::client;
use crate::world::Embedded;

async fn ask(method: &str, url: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = client().request(Method::from_bytes(method.as_bytes()).unwrap(), url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

fn header<'r>(response: &'r Response, name: &str) -> &'r str {
    response.headers().get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

/// A request, its expected status, and the caching of the answer.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], u16, &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_paths() {
    let embedded = Embedded::new(1);
    let node = embedded.node(&[]).await;
    let order = "/seckill/orders/00000000-0000-4000-8000-000000000000";
    let cases: [Case; 24] = [
        ("GET", "/", &[], 200, "no-cache"),
        ("HEAD", "/", &[], 200, "no-cache"),
        ("GET", "/app.js", &[], 200, "no-cache"),
        ("GET", "/style.css", &[], 200, "no-cache"),
        ("GET", "/favicon.svg", &[], 200, "no-cache"),
        ("POST", "/", &[], 405, "no-store"),
        ("GET", "/seckill/getCount", &[], 200, "public, max-age=1"),
        ("GET", "/seckill/getCount?item=NO!", &[], 400, "no-store"),
        ("GET", "/seckill/getCount?item=a&item=b", &[], 400, "no-store"),
        ("POST", "/seckill/getCount", &[], 405, "no-store"),
        ("POST", "/seckill/seckill", &[("Idempotency-Key", "a")], 200, "no-store"),
        ("POST", "/seckill/seckill", &[("Idempotency-Key", "b")], 200, "no-store"),
        ("POST", "/seckill/seckill?item=other", &[], 404, "no-store"),
        ("POST", "/seckill/seckill", &[("Idempotency-Key", "")], 400, "no-store"),
        ("GET", "/seckill/seckill", &[], 405, "no-store"),
        ("GET", order, &[], 404, "no-store"),
        ("GET", "/seckill/orders/none", &[], 400, "no-store"),
        ("OPTIONS", "/seckill/seckill", &[("Origin", "http://elsewhere.example")], 204, "no-store"),
        ("POST", "/seckill/seckill", &[("Origin", "http://elsewhere.example")], 403, "no-store"),
        ("HEAD", "/seckill/getCount", &[], 200, "public, max-age=1"),
        ("GET", "/seckill/now", &[], 200, "no-store"),
        // Ops endpoints are on the other listener.
        ("GET", "/metrics", &[], 404, "no-store"),
        ("GET", "/livez", &[], 404, "no-store"),
        ("GET", "/readyz", &[("Host", &node.ops["http://".len()..])], 404, "no-store"),
    ];
    let mut told = Vec::new();
    for (method, path, headers, status, kept) in cases {
        let response = ask(method, &format!("{}{path}", node.url), headers).await;
        let about = format!("{method} {path} {headers:?}");
        assert_eq!(response.status().as_u16(), status, "{about}");
        assert_eq!(header(&response, "cache-control"), kept, "{about}");
        assert_eq!(header(&response, "x-content-type-options"), "nosniff", "{about}");
        if kept == "no-cache" {
            assert_eq!(header(&response, "referrer-policy"), "no-referrer", "{about}");
            let policy = header(&response, "content-security-policy");
            for part in
                ["default-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
            {
                assert!(policy.contains(part), "{about}: {policy}");
            }
            assert!(!policy.contains("unsafe"), "{about}: {policy}");
        } else {
            // An answer that no browser renders as a page needs no page policy.
            let json = header(&response, "content-type").ends_with("json; charset=utf-8");
            assert!(json || status == 204, "{about}");
        }
        // No other site's script may read an answer, and no header names the server.
        assert_eq!(header(&response, "access-control-allow-origin"), "", "{about}");
        assert_eq!(header(&response, "server"), "", "{about}");
        if path == "/seckill/seckill" && status == 200 {
            told.extend(
                response.json::<serde_json::Value>().await.unwrap()["order"].as_str().map(str::to_owned),
            );
        }
    }
    // Conversely: the ops listener sells nothing.
    for (method, path) in
        [("POST", "/seckill/seckill"), ("GET", "/seckill/getCount"), ("GET", order), ("GET", "/")]
    {
        let response = ask(method, &format!("{}{path}", node.ops), &[]).await;
        assert_eq!(response.status().as_u16(), 404, "{path} on the ops listener");
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        let response = ask("GET", &format!("{}{path}", node.ops), &[]).await;
        assert_eq!(response.status().as_u16(), 200, "{path}");
        assert_eq!(header(&response, "cache-control"), "no-store", "{path}");
        assert_eq!(header(&response, "x-content-type-options"), "nosniff", "{path}");
        let url = format!("{}{path}", node.ops);
        assert_eq!(ask("HEAD", &url, &[]).await.status().as_u16(), 200, "{path}");
        for (method, status) in [("POST", 405), ("OPTIONS", 204)] {
            let response = ask(method, &url, &[]).await;
            assert_eq!(response.status().as_u16(), status, "{method} {path}");
            assert_eq!(header(&response, "allow"), "GET, HEAD, OPTIONS", "{method} {path}");
        }
    }
    assert_eq!(told.len(), 1);
    embedded.balance(&told, 1).await;
}

/// Ops connections, idle or within a request, are evicted for a new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_is_answered_whoever_holds_connections() {
    use tokio::io::AsyncWriteExt as _;
    let embedded = Embedded::new(1);
    let node = embedded.node(&[]).await;
    let mut held = Vec::new();
    for number in 0..300 {
        let mut stream =
            tokio::net::TcpStream::connect(node.ops.trim_start_matches("http://")).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        }
        held.push(stream);
        if number % 50 == 49 {
            for path in ["/livez", "/readyz"] {
                assert_eq!(ask("GET", &format!("{}{path}", node.ops), &[]).await.status().as_u16(), 200);
            }
        }
    }
    drop(held);
    embedded.balance(&[], 0).await;
}
