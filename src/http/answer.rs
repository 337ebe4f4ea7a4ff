//! The words of every answer: its code, its status, its sentence in two languages.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, AcceptLanguage, Header as _, HeaderValue};
use actix_web::{HttpMessage, HttpResponse, HttpResponseBuilder};
use serde_json::json;

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
}

/// What a page or load plan should wait before it tries again, in seconds.
const RETRY_AFTER_S: &str = "1";

impl Code {
    /// As it stands in answers and metrics.
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
        }
    }

    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Success | Self::SoldOut => StatusCode::OK,
            Self::Pending => StatusCode::ACCEPTED,
            Self::NotOpen | Self::Closed => StatusCode::FORBIDDEN,
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
        // Most browsers name the one they like best first, without a weight.
        let first = accepted.as_bytes().split(|byte| *byte == b',').next().unwrap_or_default();
        match first {
            _ if first.contains(&b';') => {}
            [b'z', b'h'] | [b'z', b'h', b'-', ..] => return Self::Zh,
            [b'e', b'n'] | [b'e', b'n', b'-', ..] => return Self::En,
            _ => {}
        }
        let ranked = AcceptLanguage::parse(request).map(|accepted| accepted.ranked()).unwrap_or_default();
        ranked
            .iter()
            .filter_map(|range| range.item())
            .find_map(|range| match range.primary_language() {
                "zh" => Some(Self::Zh),
                "en" => Some(Self::En),
                _ => None,
            })
            .unwrap_or(Self::Zh)
    }
}

/// An attempt that was not valid, or could not be made (RFC 9457).
pub(super) fn problem(request: &impl HttpMessage, code: Code, detail: Option<&str>) -> HttpResponse {
    let mut body = json!({
        "type": "about:blank",
        "title": code.status().canonical_reason(),
        "status": code.status().as_u16(),
        "code": code.name(),
        "messages": code.message(Language::of(request), 0),
    });
    if let (Some(detail), Some(members)) = (detail, body.as_object_mut()) {
        members.insert("detail".into(), detail.into());
    }
    let mut answer = head(code.status(), "application/problem+json", NO_STORE);
    if matches!(code, Code::Busy | Code::Unavailable) {
        answer.insert_header((header::RETRY_AFTER, RETRY_AFTER_S));
    }
    answer.body(body.to_string())
}

/// The head of an answer: what it is, and nothing else, and who may keep it.
pub(super) fn head(status: StatusCode, kind: &'static str, keep: &'static str) -> HttpResponseBuilder {
    let mut answer = HttpResponse::build(status);
    answer
        .insert_header((header::CONTENT_TYPE, HeaderValue::from_static(kind)))
        .insert_header((header::CACHE_CONTROL, HeaderValue::from_static(keep)))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")));
    answer
}

/// What is one buyer's is kept by nobody.
pub(super) const NO_STORE: &str = "no-store";

/// The type of every answer that is no refusal.
pub(super) const JSON: &str = "application/json";
