//! `GET /seckill/getCount`: what is left, and what a buyer could expect now; and `GET /seckill/now`.

use std::cell::RefCell;

use actix_web::http::StatusCode;
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use uuid::Uuid;

use super::answer::{Code, JSON, NO_STORE, head, problem};
use super::{Front, Query};
use crate::gate::now_ms;
use crate::item::Item;
use crate::shop::{State, View};

/// How often a page should poll, in milliseconds.
const NEXT_POLL_MS: u64 = 1000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    num: u64,
    state: &'static str,
    epoch: Option<Uuid>,
    opens_at: Option<i64>,
    closes_at: Option<i64>,
    now: i64,
    next_poll_ms: u64,
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

pub(super) fn at_the_door(front: &Front, item: &Item) -> Option<HttpResponse> {
    front.shop.at_hand(item).map(|till| answer(front, till.view()))
}

thread_local! {
    /// The last body, for who asks in the same millisecond.
    static LAST: RefCell<Option<(View, i64, Bytes)>> = const { RefCell::new(None) };
}

/// The time, kept by nobody: a kept answer's `now` is from before.
pub(super) fn now() -> HttpResponse {
    head(StatusCode::OK, JSON, NO_STORE).json(serde_json::json!({ "now": now_ms() }))
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
    head(StatusCode::OK, JSON, "public, max-age=1").body(body)
}

fn body(front: &Front, view: View, now: i64) -> Bytes {
    let body = Body {
        num: view.left,
        state: match view.state {
            State::NotOpen => "not_open",
            State::Open => "open",
            State::SoldOut => "sold_out",
            State::Closed => "closed",
            State::NotOnSale => "not_on_sale",
            State::Unavailable => "unavailable",
        },
        epoch: view.epoch,
        opens_at: front.window.opens_at,
        closes_at: front.window.closes_at,
        now,
        next_poll_ms: NEXT_POLL_MS,
    };
    serde_json::to_vec(&body).unwrap_or_default().into()
}
