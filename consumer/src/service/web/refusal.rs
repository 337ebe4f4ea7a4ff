//! Problem bodies for the library's own refusals of malformed requests.

use actix_web::http::StatusCode;
use memchr::memmem;

/// Where in `bytes`, which are about to be written, an answer without a body starts, and its status. The
/// library writes it last, and closes. All our own refusals have a body.
pub(super) fn wordless(bytes: &[u8]) -> Option<(usize, StatusCode)> {
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let at = memmem::rfind(bytes, b"HTTP/1.")?;
    let head = &bytes[at..];
    let status = StatusCode::from_bytes(head.get(9..12)?).ok()?;
    let empty = memmem::find(head, b"\r\ncontent-length: 0\r\n").is_some();
    (empty && status.is_client_error()).then_some((at, status))
}

/// The answer to an unparsed request, after which the connection closes.
pub(super) fn with_words(status: StatusCode, problem: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json; charset=utf-8\r\n\
         cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{problem}",
        problem.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wordless_is_found() {
        let bare =
            "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        assert_eq!(wordless(bare.as_bytes()), Some((0, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)));
        let before = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        let both = format!("{before}{bare}");
        assert_eq!(
            wordless(both.as_bytes()),
            Some((before.len(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE))
        );
        for ours in [
            before,
            "HTTP/1.1 204 No Content\r\nallow: GET\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 90\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\n\r\n",
        ] {
            assert_eq!(wordless(ours.as_bytes()), None, "{ours}");
        }
    }
}
