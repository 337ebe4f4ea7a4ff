//! CORS and the cross-site check: pages of allowed origins may buy here and read the answers; those of other
//! sites may not.

use actix_http::{Request, Response};
use actix_web::HttpMessage as _;
use actix_web::body::BoxBody;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};

pub(super) static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The refusal for other sites' pages.
pub(super) const ELSEWHERE: &str = "the request comes from a page of another site; if that page is yours, name its origin \
    in SECKILL_ALLOWED_ORIGINS, and if it is this shop's own, let the proxy in front pass the Host header on";

/// Whether a browser sends this for another site's page, without its visitor's knowledge. Programs send
/// neither header.
pub(super) fn from_elsewhere(headers: &HeaderMap, allowed: &[String]) -> bool {
    let said = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let origin = headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or("null"));
    if origin.is_some_and(|origin| is_allowed(origin, allowed)) {
        return false;
    }
    match (said(&SEC_FETCH_SITE), origin) {
        (Some(site), _) => matches!(site, "cross-site" | "same-site"),
        (None, None) => false,
        (None, Some(origin)) => {
            let host = origin.split_once("://").map_or("", |(_, host)| host);
            // No page can set the second; a proxy may replace the first.
            ![said(&header::HOST), said(&X_FORWARDED_HOST)]
                .iter()
                .any(|here| here.is_some_and(|here| here.eq_ignore_ascii_case(host)))
        }
    }
}

fn is_allowed(origin: &str, allowed: &[String]) -> bool {
    allowed.iter().any(|one| one.eq_ignore_ascii_case(origin))
}

/// The allowed origin of this request, if it names one.
pub(super) fn guest(request: &Request, allowed: &[String]) -> Option<HeaderValue> {
    if allowed.is_empty() {
        return None;
    }
    let origin = request.headers().get(header::ORIGIN)?;
    origin.to_str().is_ok_and(|origin| is_allowed(origin, allowed)).then(|| origin.clone())
}

/// Lets the guest's page read the answer, and keeps caches from serving it to other origins.
pub(super) fn welcome(guest: Option<HeaderValue>, answer: &mut Response<BoxBody>) {
    let headers = answer.headers_mut();
    // Cacheable answers are the same for every origin, and stay one copy.
    if headers.get(header::CACHE_CONTROL).is_some_and(|keep| keep.as_bytes().starts_with(b"public")) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        return;
    }
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    let Some(guest) = guest else { return };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, guest);
    // A preflight's answer lists what is allowed.
    match headers.get(header::ALLOW).cloned() {
        Some(methods) => {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
            headers.insert(
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                HeaderValue::from_static("Idempotency-Key, Content-Type"),
            );
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        }
        None => {
            let named = HeaderValue::from_static("Location, Retry-After");
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, named);
        }
    }
}
