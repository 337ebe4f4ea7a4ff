//! Vocabulary of all answers: code, status, and message in two languages.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpMessage, HttpResponse, HttpResponseBuilder};
use serde::Serialize;
use utoipa::ToSchema;

/// An answer's `code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Success,
    SoldOut,
    Pending,
    NotOpen,
    Closed,
    NotOnSale,
    Busy,
    Unavailable,
    BadRequest,
    BodyTooLarge,
    HeadTooLarge,
    TooSlow,
    NotFound,
    MethodNotAllowed,
    CrossSite,
}

/// How long a page or load plan should wait before a retry, in seconds.
const RETRY_AFTER_S: &str = "1";

impl Code {
    /// The name in answers and metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::SoldOut => "sold_out",
            Self::Pending => "pending",
            Self::NotOpen => "not_open",
            Self::Closed => "closed",
            Self::NotOnSale => "not_on_sale",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::BadRequest => "bad_request",
            Self::BodyTooLarge | Self::HeadTooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::CrossSite => "cross_site",
        }
    }

    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Success | Self::SoldOut => StatusCode::OK,
            Self::Pending => StatusCode::ACCEPTED,
            Self::NotOpen | Self::Closed | Self::CrossSite => StatusCode::FORBIDDEN,
            Self::NotOnSale | Self::NotFound => StatusCode::NOT_FOUND,
            Self::Busy | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    /// The sentence for `messages`.
    pub(super) fn message(self, language: Language, left: u64) -> String {
        let (zh, en) = match self {
            Self::Success => {
                return match language {
                    Language::Zh => format!("购买成功，还剩下{left}个"),
                    Language::En => format!("Bought, {left} left"),
                };
            }
            Self::SoldOut => ("抢完了", "Sold out"),
            Self::Pending => ("订单确认中，请稍候", "Your order is being confirmed"),
            Self::NotOpen => ("抢购还没有开始", "The sale has not opened yet"),
            Self::Closed => ("抢购已经结束", "The sale is over"),
            Self::NotOnSale => ("该商品不在售", "This item is not on sale"),
            Self::Busy => ("排队的人太多，请稍后再试", "Too many are waiting, please try again"),
            Self::Unavailable => ("暂时无法购买，请稍后再试", "Not available right now, please try again"),
            Self::BadRequest => ("请求有误", "The request is malformed"),
            Self::BodyTooLarge | Self::HeadTooLarge => ("请求过大", "The request is too large"),
            Self::TooSlow => ("请求超时", "The request took too long to arrive"),
            Self::NotFound => ("没有找到", "Not found"),
            Self::MethodNotAllowed => ("不支持该请求方法", "Method not allowed"),
            Self::CrossSite => ("请在本店的页面上购买", "Please buy on the shop's own page"),
        };
        match language {
            Language::Zh => zh.to_owned(),
            Language::En => en.to_owned(),
        }
    }
}

/// The languages of `messages`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    Zh,
    En,
}

impl Language {
    /// The client's preferred one of the two; Chinese without any preference.
    pub(super) fn of(request: &impl HttpMessage) -> Self {
        let Some(accepted) = request.headers().get(header::ACCEPT_LANGUAGE) else { return Self::Zh };
        // Most browsers put their first choice first, without a weight.
        let first = accepted.as_bytes().split(|byte| *byte == b',').next().unwrap_or_default();
        match first {
            _ if first.contains(&b';') => {}
            [b'z', b'h'] | [b'z', b'h', b'-', ..] => return Self::Zh,
            [b'e', b'n'] | [b'e', b'n', b'-', ..] => return Self::En,
            _ => {}
        }
        Self::by_weight(&accepted.to_str().unwrap_or_default().to_ascii_lowercase())
    }

    /// By the weights (RFC 9110, 12.4.2): the heavier of the two, and never one of weight 0, if the other may
    /// be.
    fn by_weight(accepted: &str) -> Self {
        let (mut zh, mut en, mut any) = (None, None, None);
        for (place, range) in accepted.split(',').enumerate() {
            let (language, weight) = range.split_once(";").unwrap_or((range, ""));
            let weight = weight.trim().strip_prefix("q=").map_or(Ok(1.0), str::parse::<f32>);
            let Ok(weight) = weight else { continue };
            let known = match language.trim().split('-').next() {
                Some("zh") => &mut zh,
                Some("en") => &mut en,
                Some("*") => &mut any,
                _ => continue,
            };
            // On equal weights, the first.
            if known.is_none_or(|(heaviest, _)| weight > heaviest) {
                *known = Some((weight, std::cmp::Reverse(place)));
            }
        }
        let (zh, en) = (zh.or(any), en.or(any));
        match (zh, en) {
            (Some((0.0, _)), en) if en.is_none_or(|(weight, _)| weight > 0.0) => Self::En,
            (zh, Some(en)) if en.0 > 0.0 && zh.is_none_or(|zh| en > zh) => Self::En,
            _ => Self::Zh,
        }
    }
}

/// Why a request was not valid, or could not be served (RFC 9457).
#[derive(Serialize, ToSchema)]
pub(super) struct Problem<'d> {
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    kind: &'static str,
    #[schema(value_type = String)]
    title: &'static str,
    status: u16,
    /// `bad_request`, `cross_site`, `not_open`, `closed`, `not_on_sale`, `not_found`, `method_not_allowed`,
    /// `too_slow`, `too_large`, `busy` or `unavailable`; there may be more.
    #[schema(value_type = String)]
    code: &'static str,
    /// For people.
    messages: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    detail: Option<&'d str>,
}

/// A problem answer: the attempt was not valid, or could not be made.
pub(super) fn problem(request: &impl HttpMessage, code: Code, detail: Option<&str>) -> HttpResponse {
    let mut answer = head(code.status(), &PROBLEM, &NO_STORE);
    if matches!(code, Code::Busy | Code::Unavailable) {
        answer.insert_header((header::RETRY_AFTER, RETRY_AFTER_S));
    }
    answer.body(words(Language::of(request), code, detail))
}

/// The body of a problem.
pub(super) fn words(language: Language, code: Code, detail: Option<&str>) -> String {
    let problem = Problem {
        kind: "about:blank",
        title: code.status().canonical_reason().unwrap_or_default(),
        status: code.status().as_u16(),
        code: code.name(),
        messages: code.message(language, 0),
        detail,
    };
    serde_json::to_string(&problem).unwrap_or_default()
}

/// Headers of an answer: its type, `nosniff`, and its caching.
pub(super) fn head(status: StatusCode, kind: &HeaderValue, keep: &HeaderValue) -> HttpResponseBuilder {
    let mut answer = HttpResponse::build(status);
    answer
        .insert_header((header::CONTENT_TYPE, kind.clone()))
        .insert_header((header::CACHE_CONTROL, keep.clone()))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, NO_SNIFF.clone()));
    answer
}

/// Answers to one client are not cached.
pub(super) static NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// The type of every answer that is no refusal.
pub(super) static JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// The media type of problems.
static PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json; charset=utf-8");

static NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heavier_language_and_never_one_of_no_weight() {
        for (accepted, language) in [
            ("en", Language::En),
            ("zh-cn,en;q=0.9", Language::Zh),
            ("en-gb, zh;q=0.5", Language::En),
            ("en;q=0.5, zh", Language::Zh),
            ("en;q=0.5, zh;q=0.5", Language::En),
            ("zh;q=0.2,fr;q=0.9,en;q=0.3", Language::En),
            ("zh;q=0, en;q=0.1", Language::En),
            ("zh;q=0", Language::En),
            ("zh;q=0, *", Language::En),
            ("en;q=0", Language::Zh),
            ("en;q=0.000, fr", Language::Zh),
            ("en;q=0, zh;q=0", Language::Zh),
            ("*", Language::Zh),
            ("en;q=0.2, *;q=0.5", Language::Zh),
            ("fr, de", Language::Zh),
            ("", Language::Zh),
            ("en;q=many", Language::Zh),
            ("english", Language::Zh),
        ] {
            assert_eq!(Language::by_weight(accepted), language, "{accepted}");
        }
    }
}
