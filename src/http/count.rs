//! `GET /seckill/getCount`: units left and the sale's state; and `GET /seckill/now`.

use std::cell::RefCell;

use actix_web::http::StatusCode;
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use actix_web::http::header::HeaderValue;

use super::answer::{Code, JSON, NO_STORE, head, problem};
use super::{Front, Query};
use crate::clock::now_ms;
use crate::sale::{Item, State, View};

/// How often a page should poll, in milliseconds.
const NEXT_POLL_MS: u64 = 1000;

static A_SECOND: HeaderValue = HeaderValue::from_static("public, max-age=1");

/// What is left, and what an attempt would get now. Times are Unix milliseconds.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Count)]
pub(super) struct Body {
    /// Units left.
    num: u64,
    /// Units left and units sold; null where that is not known.
    #[schema(required)]
    total: Option<u64>,
    state: State,
    /// Changes with a new sale.
    #[schema(required)]
    epoch: Option<Uuid>,
    #[schema(required)]
    opens_at: Option<i64>,
    #[schema(required)]
    closes_at: Option<i64>,
    now: i64,
    /// How long to wait before the next poll.
    next_poll_ms: u64,
}

/// The service's clock, in Unix milliseconds.
#[derive(Serialize, ToSchema)]
pub(super) struct Now {
    now: i64,
}

pub(super) async fn count(
    request: HttpRequest,
    query: web::Query<Query>,
    front: web::Data<Front>,
) -> HttpResponse {
    let item = match query.item() {
        Ok(item) => item,
        Err(why) => return problem(&request, Code::BadRequest, Some(&why)),
    };
    answer(&front, front.shop.view(&item).await)
}

pub(super) fn at_once(front: &Front, item: &Item) -> Option<HttpResponse> {
    front.shop.at_hand(item).map(|till| answer(front, till.view()))
}

thread_local! {
    /// The last body, reused within the same millisecond.
    static LAST: RefCell<Option<(View, i64, Bytes)>> = const { RefCell::new(None) };
}

/// The time, never cached: a cached `now` is stale.
pub(super) fn now() -> HttpResponse {
    head(StatusCode::OK, &JSON, &NO_STORE).json(Now { now: now_ms() })
}

fn answer(front: &Front, view: View) -> HttpResponse {
    let now = now_ms();
    let body = LAST.with_borrow_mut(|last| match last {
        Some((seen, at, body)) if *seen == view && *at == now => Bytes::clone(body),
        _ => {
            let body = body(front, view, now);
            *last = Some((view, now, Bytes::clone(&body)));
            body
        }
    });
    head(StatusCode::OK, &JSON, &A_SECOND).body(body)
}

fn body(front: &Front, view: View, now: i64) -> Bytes {
    let body = Body {
        num: view.left,
        total: view.total,
        state: view.state,
        epoch: view.epoch,
        opens_at: front.window.opens_at,
        closes_at: front.window.closes_at,
        now,
        next_poll_ms: NEXT_POLL_MS,
    };
    serde_json::to_vec(&body).unwrap_or_default().into()
}
