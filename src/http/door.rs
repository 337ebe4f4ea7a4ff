//! What thousands ask in the same second is answered at the door: an attempt to buy, what is left,
//! the page. Whatever else is asked, or asked in an unusual way, goes on into the application,
//! which answers these just the same.

use actix_http::{HttpMessage, Request};
use actix_web::HttpResponse;
use actix_web::http::Method;
use actix_web::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use consumer::service::web::fits;

use super::{BUY, COUNT, NOW, Worker, buy, count, page};
use crate::sale::Item;

/// How a request is answered at the door.
pub(super) enum Way {
    /// At once.
    Answered(HttpResponse),
    /// After an attempt to buy one of these.
    Buy(Item),
}

/// `None` for what goes on into the application.
pub(super) fn way(request: &Request, worker: &Worker) -> Option<Way> {
    let (headers, uri) = (request.headers(), request.uri());
    let no_body = headers.get(CONTENT_LENGTH).is_none_or(|length| length == "0");
    if !no_body || headers.contains_key(TRANSFER_ENCODING) || !fits(headers, uri) {
        return None;
    }
    let item = || match uri.query() {
        None => Some(Item::default()),
        // A name that has to be decoded is none.
        Some(query) => query.strip_prefix("item=")?.parse::<Item>().ok(),
    };
    match (request.method(), uri.path()) {
        (&Method::POST, BUY) => {
            let item = item()?;
            Some(buy::sold_out_already(request, &worker.front, &item).map_or(Way::Buy(item), Way::Answered))
        }
        (&Method::GET, COUNT) => count::at_the_door(&worker.front, &item()?).map(Way::Answered),
        (&Method::GET, NOW) => Some(Way::Answered(count::now())),
        (&Method::GET, path) => page::at_the_door(headers, path).map(Way::Answered),
        _ => None,
    }
}
