//! Request head fixes, applied before the library parses the head.
//!
//! The library refuses an HTTP/1.0 POST without a length, which is one without a body (RFC 9112, 6.3) and
//! nginx's default. It honours `Connection: upgrade` by closing the connection after the answer; nginx
//! recipes send that with every request, and nothing here upgrades.

use memchr::{memchr, memmem};

/// The library refuses a head that is still incomplete.
const HOLD: usize = 64 * 1024;

/// What to do with the first bytes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mended {
    /// The head is incomplete: read more.
    Wait,
    /// Pass them on as they are now.
    AsItIs,
    /// Pass these on instead.
    Instead(Vec<u8>),
}

/// Inspects the bytes since a request began, and fixes its head once complete.
pub(super) fn mend(bytes: &mut [u8]) -> Mended {
    let end = if bytes.ends_with(b"\r\n\r\n") && memmem::find(bytes, b"\n\r\n") == Some(bytes.len() - 3) {
        bytes.len()
    } else {
        match memmem::find(bytes, b"\n\r\n")
            .map(|at| at + 3)
            .or(memmem::find(bytes, b"\n\n").map(|at| at + 2))
        {
            Some(end) => end,
            None if bytes.len() < HOLD => return Mended::Wait,
            None => return Mended::AsItIs,
        }
    };
    let head = &mut bytes[..end];
    if memmem::find(head, b"pgrade").or_else(|| memmem::find(head, b"PGRADE")).is_some() {
        for line in head.split_mut(|byte| *byte == b'\n') {
            ignore_upgrade(line);
        }
    }
    let first = memchr(b'\n', head).map_or(0, |at| at + 1);
    let line = head[..first].trim_ascii_end();
    if line.starts_with(b"POST ") && line.ends_with(b" HTTP/1.0") && !says_its_length(&head[first..]) {
        return Mended::Instead([&bytes[..first], b"Content-Length: 0\r\n", &bytes[first..]].concat());
    }
    Mended::AsItIs
}

/// Whether these bytes are exactly one head, of a request without a body: only then the next bytes are surely
/// a head too, not body bytes that look like one.
pub(super) fn is_alone(bytes: &[u8]) -> bool {
    let ends = bytes.ends_with(b"\r\n\r\n") && memmem::find(bytes, b"\n\r\n") == Some(bytes.len() - 3);
    ends && bytes.split(|byte| *byte == b'\n').all(|line| {
        !is(line, b"transfer-encoding:")
            && (!is(line, b"content-length:") || line[b"content-length:".len()..].trim_ascii() == b"0")
    })
}

fn says_its_length(headers: &[u8]) -> bool {
    headers
        .split(|byte| *byte == b'\n')
        .any(|line| is(line, b"content-length:") || is(line, b"transfer-encoding:") || line.starts_with(b" "))
}

/// Renames to an unknown option or header of the same length.
fn ignore_upgrade(line: &mut [u8]) {
    const UPGRADE: &[u8] = b"upgrade";
    if is(line, b"upgrade:") {
        line[..UPGRADE.len()].copy_from_slice(b"x-other");
    } else if is(line, b"connection:") {
        for at in 0..=line.len() - UPGRADE.len() {
            if is(&line[at..], UPGRADE) {
                line[at..at + UPGRADE.len()].copy_from_slice(b"ignored");
            }
        }
    }
}

fn is(line: &[u8], beginning: &[u8]) -> bool {
    line.get(..beginning.len()).is_some_and(|begins| begins.eq_ignore_ascii_case(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mended(text: &str) -> Mended {
        let mut bytes = text.as_bytes().to_vec();
        match mend(&mut bytes) {
            Mended::AsItIs => Mended::Instead(bytes),
            other => other,
        }
    }

    fn as_text(mended: Mended) -> String {
        match mended {
            Mended::Instead(bytes) => String::from_utf8(bytes).expect("text"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_post_without_a_length_is_one_without_a_body() {
        let after = as_text(mended("POST /b HTTP/1.0\r\nHost: shop\r\n\r\n"));
        assert_eq!(after, "POST /b HTTP/1.0\r\nContent-Length: 0\r\nHost: shop\r\n\r\n");
        for other in [
            "POST /b HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi",
            "POST /b HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST /b HTTP/1.1\r\nHost: shop\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert_eq!(as_text(mended(other)), other);
        }
    }

    #[test]
    fn what_follows_a_body_is_no_head_for_sure() {
        for alone in [
            "GET / HTTP/1.1\r\nHost: s\r\n\r\n",
            "POST /b HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            "POST /b HTTP/1.0\r\nHost: s\r\n\r\n",
        ] {
            assert!(is_alone(alone.as_bytes()), "{alone}");
        }
        for other in [
            "POST /b HTTP/1.1\r\nContent-Length: 2\r\n\r\n",
            "POST /b HTTP/1.1\r\ncontent-length:0\r\ncontent-length: 2\r\n\r\n",
            "POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: s\r\n\r\nPOST /b HTTP/1.1\r\nContent-Length: 2\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: s\n\n",
            "GET / HTTP/1.1\r\n",
        ] {
            assert!(!is_alone(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn nobody_is_upgraded() {
        let asked = "GET / HTTP/1.1\r\nHost: s\r\nConnection: keep-alive, Upgrade\r\nUPGRADE: websocket\r\n\r\nUpgrade: h2c";
        let after = "GET / HTTP/1.1\r\nHost: s\r\nConnection: keep-alive, ignored\r\nx-other: websocket\r\n\r\nUpgrade: h2c";
        assert_eq!(as_text(mended(asked)), after);
        let elsewhere = "GET /upgrade HTTP/1.1\r\nUpgrade-Insecure-Requests: 1\r\nConnection:\r\n\r\n";
        assert_eq!(as_text(mended(elsewhere)), elsewhere);
    }

    #[test]
    fn a_head_that_comes_in_pieces_is_waited_for() {
        let text = "POST /b HTTP/1.0\r\nHost: shop\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(mended(&text[..end]), Mended::Wait, "{end}");
        }
        assert_eq!(mend(&mut vec![b'x'; HOLD]), Mended::AsItIs);
    }
}
