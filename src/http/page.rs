//! `GET /`: the page, from the binary itself.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, web};

use super::answer::head;

/// Path, type and bytes of everything the page needs.
const FILES: [(&str, &str, &[u8]); 7] = [
    ("/", "text/html; charset=utf-8", include_bytes!("../../static/index.html")),
    ("/app.js", "text/javascript; charset=utf-8", include_bytes!("../../static/app.js")),
    ("/style.css", "text/css; charset=utf-8", include_bytes!("../../static/style.css")),
    ("/words.js", "text/javascript; charset=utf-8", include_bytes!("../../static/words.js")),
    ("/clock.js", "text/javascript; charset=utf-8", include_bytes!("../../static/clock.js")),
    ("/poster.svg", "image/svg+xml", include_bytes!("../../static/poster.svg")),
    ("/favicon.svg", "image/svg+xml", include_bytes!("../../static/favicon.svg")),
];

/// Nothing from elsewhere, nothing inline, in no frame.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes(app: &mut web::ServiceConfig) {
    for (path, kind, bytes) in FILES {
        app.service(super::readable(path, move || async move { file(kind, bytes) }));
    }
}

pub(super) fn at_the_door(path: &str) -> Option<HttpResponse> {
    let (_, kind, bytes) = FILES.iter().find(|(name, ..)| *name == path)?;
    Some(file(kind, bytes))
}

fn file(kind: &'static str, bytes: &'static [u8]) -> HttpResponse {
    head(StatusCode::OK, kind, "no-cache")
        .insert_header((header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)))
        .insert_header((header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")))
        .body(bytes)
}
