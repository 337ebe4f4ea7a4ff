//! Fast path: answers an attempt to buy, what is left, and the page without the application, since thousands
//! ask in the same second. Everything else, or an unusual form of these, goes on to the application, which
//! answers them just the same.

use actix_http::{HttpMessage, Request};
use actix_web::HttpResponse;
use actix_web::http::Method;
use consumer::service::web::is_plain;

use super::{BUY, COUNT, NOW, Worker, buy, count, page};
use crate::sale::Item;

/// How the fast path answers a request.
pub(super) enum Fast {
    /// At once.
    Answered(HttpResponse),
    /// After an attempt to buy one of these.
    Buy(Item),
}

/// `None` for what goes on to the application.
pub(super) fn of(request: &Request, worker: &Worker) -> Option<Fast> {
    let (headers, uri) = (request.headers(), request.uri());
    if !is_plain(headers, uri) {
        return None;
    }
    let item = || match uri.query() {
        None => Some(Item::default()),
        // A name that needs decoding is none.
        Some(query) => query.strip_prefix("item=")?.parse::<Item>().ok(),
    };
    match (request.method(), uri.path()) {
        (&Method::POST, BUY) => {
            let item = item()?;
            Some(buy::sold_out_already(request, &worker.front, &item).map_or(Fast::Buy(item), Fast::Answered))
        }
        (&Method::GET, COUNT) => count::at_once(&worker.front, &item()?).map(Fast::Answered),
        (&Method::GET, NOW) => Some(Fast::Answered(count::now())),
        (&Method::GET, path) => page::at_once(headers, path).map(Fast::Answered),
        _ => None,
    }
}
