//! `POST /seckill/seckill`: one attempt to buy one unit.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::answer::{Code, Language, problem};
use super::{Front, Query};
use crate::shop::Purchase;

/// An attempt's name: as long as a UUID and some more, so that it is cheap to keep.
const MAX_KEY: usize = 64;

#[derive(Serialize)]
struct Body {
    code: &'static str,
    messages: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    num: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Uuid>,
}

pub(super) async fn buy(
    request: HttpRequest,
    query: web::Query<Query>,
    front: web::Data<Front>,
) -> HttpResponse {
    let started = Instant::now();
    let (code, answer) = attempt(&request, &query, &front).await;
    front.metrics.attempts.with_label_values(&[code.name()]).inc();
    front.metrics.purchase_seconds.observe(started.elapsed().as_secs_f64());
    answer
}

async fn attempt(request: &HttpRequest, query: &Query, front: &Front) -> (Code, HttpResponse) {
    let malformed = |why: &str| (Code::BadRequest, problem(request, Code::BadRequest, Some(why)));
    let item = match query.item() {
        Ok(item) => item,
        Err(why) => return malformed(&why),
    };
    let key = match idempotency_key(request) {
        Ok(key) => key,
        Err(why) => return malformed(why),
    };
    let (code, num, order) = match front.shop.buy(&item, key).await {
        Purchase::Bought { order, left } => (Code::Success, Some(left), Some(order)),
        Purchase::SoldOut => (Code::SoldOut, Some(0), None),
        Purchase::Pending { order } => (Code::Pending, None, Some(order)),
        Purchase::NotOpen => (Code::NotOpen, None, None),
        Purchase::Closed => (Code::Closed, None, None),
        Purchase::NotOnSale => (Code::NotOnSale, None, None),
        Purchase::Busy => (Code::Busy, None, None),
        Purchase::Unavailable => (Code::Unavailable, None, None),
    };
    if !code.status().is_success() {
        return (code, problem(request, code, None));
    }
    let messages = code.message(Language::of(request), num.unwrap_or(0));
    let mut answer = HttpResponse::build(code.status());
    answer.insert_header((header::CACHE_CONTROL, "no-store"));
    if let (Code::Pending, Some(order)) = (code, order) {
        answer.insert_header((header::LOCATION, format!("/seckill/orders/{order}")));
    }
    (code, answer.json(Body { code: code.name(), messages, num, order }))
}

/// The attempt's name, if it has one.
fn idempotency_key(request: &HttpRequest) -> Result<Option<&str>, &'static str> {
    const WRONG: &str = "Idempotency-Key: give 1 to 64 printable ASCII characters, once";
    let mut keys = request.headers().get_all("Idempotency-Key");
    let Some(key) = keys.next() else { return Ok(None) };
    if keys.next().is_some() {
        return Err(WRONG);
    }
    let key = key.to_str().map_err(|_| WRONG)?.trim();
    let fits = (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if fits { Ok(Some(key)) } else { Err(WRONG) }
}
