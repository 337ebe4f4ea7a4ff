//! `GET /`: the page, served from the binary itself.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};

use super::answer::head;

/// A file and its path.
struct File {
    path: &'static str,
    kind: HeaderValue,
    /// Its name changes with its content.
    lasts: bool,
    plain: Form,
    gzip: Form,
    brotli: Form,
}

/// One encoding of a file. Each has its own entity tag, which names these very bytes.
struct Form {
    tag: HeaderValue,
    bytes: &'static [u8],
}

/// Everything the page needs: see `build.rs`.
static FILES: [File; 13] = include!(concat!(env!("OUT_DIR"), "/files.rs"));

/// Nothing from elsewhere, nothing inline, in no frame.
static POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

static PACKED: HeaderValue = HeaderValue::from_static("Accept-Encoding");
static NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");

/// A file whose name changes with its content is cached for a year; any other is revalidated.
static A_YEAR: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
static ASK: HeaderValue = HeaderValue::from_static("no-cache");

pub(super) fn routes(app: &mut web::ServiceConfig) {
    for file in &FILES {
        let answer = move |request: HttpRequest| async move { answer(request.headers(), file) };
        app.service(super::readable(file.path, answer));
    }
}

pub(super) fn at_once(headers: &HeaderMap, path: &str) -> Option<HttpResponse> {
    FILES.iter().find(|file| file.path == path).map(|file| answer(headers, file))
}

/// A file under another version's name: in a rolling update a page comes from one node and its files from
/// another. It is answered with ours, not cached under that name.
pub(super) fn of_another_version(headers: &HeaderMap, path: &str) -> Option<HttpResponse> {
    let (stem, rest) = path.split_once('.')?;
    let (hash, extension) = rest.split_once('.')?;
    if hash.len() != 16 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    at_once(headers, &format!("{stem}.{extension}"))
}

fn answer(headers: &HeaderMap, file: &'static File) -> HttpResponse {
    let (form, packed) = if takes(headers, "br") {
        (&file.brotli, Some("br"))
    } else if takes(headers, "gzip") {
        (&file.gzip, Some("gzip"))
    } else {
        (&file.plain, None)
    };
    let has = listed(headers, &header::IF_NONE_MATCH)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == form.tag.as_bytes());
    let status = if has { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let mut answer = head(status, &file.kind, if file.lasts { &A_YEAR } else { &ASK });
    answer
        .insert_header((header::ETAG, form.tag.clone()))
        .insert_header((header::VARY, PACKED.clone()))
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY.clone()))
        .insert_header((header::REFERRER_POLICY, NO_REFERRER.clone()));
    if has {
        return answer.finish();
    }
    if let Some(packed) = packed {
        answer.insert_header((header::CONTENT_ENCODING, HeaderValue::from_static(packed)));
    }
    answer.body(form.bytes)
}

/// Whether a client accepts this encoding.
fn takes(headers: &HeaderMap, packed: &str) -> bool {
    listed(headers, &header::ACCEPT_ENCODING).any(|one| {
        let (name, weight) = one.split_once(';').unwrap_or((one, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|weight| weight.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case(packed) && !refused
    })
}

/// The members of a list header that may be spread over several lines.
fn listed<'h>(headers: &'h HeaderMap, name: &'h HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
}
