//! `POST /seckill/seckill`: one attempt to buy one unit.

use std::sync::LazyLock;

use actix_web::http::header::{self, HeaderMap, HeaderName};
use actix_web::web::Bytes;
use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

use super::answer::{Code, JSON, Language, NO_STORE, head, problem};
use super::origin::{ELSEWHERE, SEC_FETCH_SITE, from_elsewhere};
use super::{Front, Query};
use crate::sale::{Item, Purchase};
use crate::selling::gate::Gate;
use crate::selling::mailbox::Mailbox;

/// Longest attempt name: a UUID and some more, so that it is cheap to keep.
const MAX_KEY: usize = 64;

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The outcome of an attempt to buy.
#[derive(Serialize, ToSchema)]
#[schema(as = Attempt)]
pub(super) struct Body {
    #[schema(value_type = String, pattern = "^(success|sold_out|pending)$")]
    code: &'static str,
    /// For people.
    messages: String,
    /// Units left after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    num: Option<u64>,
    /// Once a success, the buyer's for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    order: Option<Uuid>,
    /// Its sale, which may be a later one than the page knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    epoch: Option<Uuid>,
}

/// The most frequent answer of the busiest second, serialized once.
static SOLD_OUT_ZH: LazyLock<Bytes> = LazyLock::new(|| sold_out_body(Language::Zh));
static SOLD_OUT_EN: LazyLock<Bytes> = LazyLock::new(|| sold_out_body(Language::En));

fn sold_out_body(language: Language) -> Bytes {
    let code = Code::SoldOut;
    let body = Body {
        code: code.name(),
        messages: code.message(language, 0),
        num: Some(0),
        order: None,
        epoch: None,
    };
    serde_json::to_vec(&body).unwrap_or_default().into()
}

fn sold_out(language: Language) -> HttpResponse {
    let body = match language {
        Language::Zh => &SOLD_OUT_ZH,
        Language::En => &SOLD_OUT_EN,
    };
    head(Code::SoldOut.status(), &JSON, &NO_STORE).body(Bytes::clone(body))
}

/// Sold out, for an attempt without a key; one with a key may be a winner's.
pub(super) fn sold_out_already(
    request: &impl HttpMessage,
    front: &Front,
    item: &Item,
) -> Option<HttpResponse> {
    let headers = request.headers();
    let till = front.shop.at_hand(item).filter(|_| is_anonymous(headers))?;
    if till.gate() != Gate::Shut(Purchase::SoldOut) {
        return None;
    }
    front.metrics.answered(Code::SoldOut.name(), None);
    Some(sold_out(Language::of(request)))
}

pub(super) async fn buy(
    request: HttpRequest,
    query: web::Query<Query>,
    front: web::Data<Front>,
    mailbox: web::Data<Mailbox>,
) -> HttpResponse {
    answer(&request, query.item(), &front, &mailbox).await
}

pub(super) async fn answer(
    request: &impl HttpMessage,
    item: Result<Item, String>,
    front: &Front,
    mailbox: &Mailbox,
) -> HttpResponse {
    let started = Instant::now();
    let (code, answer) = attempt(request, item, front, mailbox).await;
    front.metrics.answered(code.name(), Some(started.elapsed()));
    answer
}

async fn attempt(
    request: &impl HttpMessage,
    item: Result<Item, String>,
    front: &Front,
    mailbox: &Mailbox,
) -> (Code, HttpResponse) {
    let headers = request.headers();
    let anonymous = is_anonymous(headers);
    let malformed = |why: &str| (Code::BadRequest, problem(request, Code::BadRequest, Some(why)));
    if !anonymous && from_elsewhere(headers, &front.origins) {
        return (Code::CrossSite, problem(request, Code::CrossSite, Some(ELSEWHERE)));
    }
    let item = match item {
        Ok(item) => item,
        Err(why) => return malformed(&why),
    };
    let key = if anonymous { Ok(None) } else { idempotency_key(headers) };
    let key = match key {
        Ok(key) => key,
        Err(why) => return malformed(why),
    };
    let (code, num, order, epoch) = match front.shop.buy(mailbox, &item, key).await {
        Purchase::Bought { order, left, epoch } => (Code::Success, Some(left), Some(order), Some(epoch)),
        Purchase::SoldOut => (Code::SoldOut, Some(0), None, None),
        Purchase::Pending { order, epoch } => (Code::Pending, None, Some(order), epoch),
        Purchase::NotOpen => (Code::NotOpen, None, None, None),
        Purchase::Closed => (Code::Closed, None, None, None),
        Purchase::NotOnSale => (Code::NotOnSale, None, None, None),
        Purchase::Busy => (Code::Busy, None, None, None),
        Purchase::Unavailable => (Code::Unavailable, None, None, None),
    };
    if !code.status().is_success() {
        return (code, problem(request, code, None));
    }
    let language = Language::of(request);
    if code == Code::SoldOut {
        return (code, sold_out(language));
    }
    let messages = code.message(language, num.unwrap_or(0));
    let mut answer = head(code.status(), &JSON, &NO_STORE);
    if let (Code::Pending, Some(order)) = (code, order) {
        // Relative to the request, whatever path leads here.
        answer.insert_header((header::LOCATION, format!("orders/{order}")));
    }
    (code, answer.json(Body { code: code.name(), messages, num, order, epoch }))
}

/// Whether an attempt carries neither a key nor its page's origin, like a program's.
fn is_anonymous(headers: &HeaderMap) -> bool {
    !headers.keys().any(|name| [&IDEMPOTENCY_KEY, &header::ORIGIN, &SEC_FETCH_SITE].contains(&name))
}

/// The attempt's name, if it has one.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    const WRONG: &str = "Idempotency-Key: give 1 to 64 printable ASCII characters, once";
    let mut keys = headers.get_all(&IDEMPOTENCY_KEY);
    let Some(key) = keys.next() else { return Ok(None) };
    if keys.next().is_some() {
        return Err(WRONG);
    }
    let key = key.to_str().map_err(|_| WRONG)?.trim();
    let fits = (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if fits { Ok(Some(key)) } else { Err(WRONG) }
}
