//! HTTP server: one file per resource, each a straight line from a request to the shop and back.

mod answer;
mod buy;
mod contract;
mod count;
mod fast_path;
mod order;
mod origin;
mod page;

use std::future::Future;
use std::net::TcpListener;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix_http::{ConnectionType, Request, Response};
use actix_service::{Service, apply_fn_factory};
use actix_web::body::BoxBody;
use actix_web::dev::{AppConfig, Server, ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, Error, FromRequest, Handler, HttpRequest, HttpResponse, Responder, web};
use consumer::service::web::{Capacity, within_limits};
use serde::Deserialize;

use crate::metrics::Metrics;
use crate::sale::times::BUYERS_WITHIN;
use crate::sale::{Item, Window};
use crate::selling::mailbox::Mailbox;
use crate::selling::shop::Shop;
use answer::{Code, Language, problem, words};
pub use contract::contract;
use fast_path::Fast;

/// The paths.
const BUY: &str = "/seckill/seckill";
const COUNT: &str = "/seckill/getCount";
const NOW: &str = "/seckill/now";
const ORDER: &str = "/seckill/orders/{order}";
const PAGE: &str = "/";

/// Open connections: at 12 KiB for an idle one and 21 KiB for a waiting one, a gigabyte.
const MAX_CONNECTIONS: usize = 50_000;
/// Open files other than client connections: servers, the embedded file, ops, libraries.
const RESERVED_FILES: u64 = 512;

/// State shared by the handlers.
pub struct Front {
    /// Decides every attempt.
    pub shop: Arc<Shop>,
    /// When it is open.
    pub window: Window,
    /// The metrics.
    pub metrics: Metrics,
    /// Allowed origins, whose pages may buy here: `https://shop.example`.
    pub origins: Vec<String>,
    /// Set on shutdown: every connection closes with its next answer.
    pub draining: Arc<AtomicBool>,
}

/// Serves clients on `listener`, with a worker for each core. Reserves enough of `open_files`, the process'
/// limit, for everything else.
///
/// # Errors
/// When the listener cannot be used.
pub fn serve(listener: TcpListener, front: Front, open_files: u64) -> std::io::Result<Server> {
    let files = usize::try_from(open_files.saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX);
    let capacity = Capacity {
        workers: workers(),
        connections: files.min(MAX_CONNECTIONS),
        shutdown_s: BUYERS_WITHIN.as_secs(),
        newest_first: false,
    };
    let front = web::Data::new(front);
    let refusing = front.clone();
    // Nothing of the request was parsed, not even a language.
    let refuse = Arc::new(move |status: StatusCode| {
        refusing.metrics.refused(status.as_u16());
        let code = match status {
            StatusCode::REQUEST_TIMEOUT => Code::TooSlow,
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Code::HeadTooLarge,
            _ => Code::BadRequest,
        };
        words(Language::Zh, code, None)
    });
    consumer::service::web::serve(listener, capacity, refuse, move || service(front.clone()))
}

impl Front {
    /// Applies to every answer, whichever path made it.
    fn leave(&self, guest: Option<HeaderValue>, answer: &mut Response<BoxBody>) {
        if !self.origins.is_empty() {
            origin::welcome(guest, answer);
        }
        if !answer.status().is_success() && answer.status() != StatusCode::NOT_MODIFIED {
            self.metrics.refused(answer.status().as_u16());
        }
        if self.draining.load(Ordering::Relaxed) {
            answer.head_mut().set_connection_type(ConnectionType::Close);
        }
    }
}

/// A thread for each core.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Minimum of open files: one connection per worker and everything else.
#[must_use]
pub fn files_needed() -> u64 {
    RESERVED_FILES + workers() as u64
}

/// One worker's service: the fast path, and behind it the application.
pub fn service(
    front: web::Data<Front>,
) -> impl ServiceFactory<
    Request,
    Config = AppConfig,
    Response = Response<BoxBody>,
    Error = Error,
    InitError = (),
    Service = impl Service<Request, Response = Response<BoxBody>, Error = Error>,
> {
    let worker = Rc::new(Worker { front, mailbox: web::Data::new(Mailbox::open()) });
    apply_fn_factory(app(&worker), move |request: Request, app| {
        let guest = origin::guest(&request, &worker.front.origins);
        let answer = match fast_path::of(&request, &worker) {
            Some(Fast::Answered(answer)) => Answer::Now(answer),
            Some(Fast::Buy(item)) => {
                let worker = Rc::clone(&worker);
                Answer::Later(Box::pin(async move {
                    Ok(buy::answer(&request, Ok(item), &worker.front, &worker.mailbox).await.into())
                }))
            }
            None => {
                let answer = app.call(request);
                Answer::Later(Box::pin(async { answer.await.map(Into::into) }))
            }
        };
        let worker = Rc::clone(&worker);
        async move {
            let mut answer = match answer {
                Answer::Now(answer) => answer.into(),
                Answer::Later(answer) => answer.await?,
            };
            worker.front.leave(guest, &mut answer);
            Ok(answer)
        }
    })
}

enum Answer {
    Now(HttpResponse),
    Later(Pin<Box<dyn Future<Output = Result<Response<BoxBody>, Error>>>>),
}

/// State shared by one worker's handlers.
struct Worker {
    front: web::Data<Front>,
    mailbox: web::Data<Mailbox>,
}

/// The application: all routes.
fn app(
    worker: &Worker,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<BoxBody>,
        Error = Error,
        InitError = (),
    > + use<>,
> {
    App::new()
        .app_data(worker.front.clone())
        .app_data(worker.mailbox.clone())
        .app_data(web::QueryConfig::default().error_handler(|error, request| {
            let why = format!("{error}; what is bought is named by ?item=NAME, and by nothing else");
            let answer = problem(request, Code::BadRequest, Some(&why));
            actix_web::error::InternalError::from_response(error, answer).into()
        }))
        .wrap(from_fn(limited))
        // Most frequent first.
        .service(resource(BUY, "POST, OPTIONS").route(web::post().to(buy::buy)))
        .service(readable(COUNT, count::count))
        .service(readable(NOW, async || count::now()))
        .service(readable(ORDER, order::order))
        .configure(page::routes)
        .default_service(web::to(async |request: HttpRequest| {
            let read = matches!(*request.method(), Method::GET | Method::HEAD);
            let file = read.then(|| page::of_another_version(request.headers(), request.path())).flatten();
            file.unwrap_or_else(|| problem(&request, Code::NotFound, None))
        }))
}

/// Answers a request that is too large or too slow like every other refusal, and refuses a body that names
/// what only the address or a header can.
async fn limited(request: ServiceRequest, next: Next<BoxBody>) -> Result<ServiceResponse, Error> {
    let (request, code) = match within_limits(request).await {
        Ok((request, body)) => {
            let Some(why) = misplaced(&body) else { return next.call(request).await };
            let request = request.into_parts().0;
            let answer = problem(&request, Code::BadRequest, Some(why));
            return Ok(ServiceResponse::new(request, answer));
        }
        Err((request, StatusCode::PAYLOAD_TOO_LARGE)) => (request, Code::BodyTooLarge),
        Err((request, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)) => (request, Code::HeadTooLarge),
        Err((request, StatusCode::REQUEST_TIMEOUT)) => (request, Code::TooSlow),
        Err((request, _)) => (request, Code::BadRequest),
    };
    let answer = problem(&request, code, None);
    Ok(ServiceResponse::new(request, answer))
}

/// What a body, JSON or form, wrongly contains, and where that belongs.
fn misplaced(body: &[u8]) -> Option<&'static str> {
    if body.is_empty() {
        return None;
    }
    let names: Vec<String> = match serde_json::from_slice::<serde_json::Map<_, _>>(body) {
        Ok(members) => members.into_iter().map(|(name, _)| name).collect(),
        Err(_) => web::Query::<Vec<(String, String)>>::from_query(&String::from_utf8_lossy(body))
            .map(|pairs| pairs.into_inner().into_iter().map(|(name, _)| name).collect())
            .unwrap_or_default(),
    };
    let multipart = String::from_utf8_lossy(body).to_lowercase();
    let says = |what: &str| {
        let plain = |name: &str| name.to_lowercase().replace(['-', '_'], "");
        names.iter().any(|name| plain(name) == plain(what)) || multipart.contains(&format!("name=\"{what}\""))
    };
    if says("item") {
        return Some("item: the body is not read; put it into the address, as ?item=NAME");
    }
    says("idempotency-key").then_some("Idempotency-Key: the body is not read; send it as a header")
}

/// A path for GET and HEAD.
fn readable<H, Args>(path: &str, handler: H) -> actix_web::Resource
where
    H: Handler<Args> + Clone,
    Args: FromRequest + 'static,
    H::Output: Responder + 'static,
{
    resource(path, "GET, HEAD, OPTIONS").route(web::get().to(handler.clone())).route(web::head().to(handler))
}

/// A path that reports its allowed methods.
fn resource(path: &str, methods: &'static str) -> actix_web::Resource {
    web::resource(path).default_service(web::to(move |request: HttpRequest| async move {
        let mut answer = if request.method() == Method::OPTIONS {
            let mut answer = HttpResponse::NoContent();
            answer.insert_header((header::CACHE_CONTROL, answer::NO_STORE.clone()));
            answer.insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff")).finish()
        } else {
            problem(&request, Code::MethodNotAllowed, None)
        };
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
        answer
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    item: Option<String>,
}

impl Query {
    /// The requested item; an error if the name is invalid.
    fn item(&self) -> Result<Item, String> {
        match self.item.as_deref() {
            None => Ok(Item::default()),
            Some(name) => name.parse().map_err(|why| format!("item: {why}")),
        }
    }
}
