//! What a client can ask for, one file each; straight lines from a request to the shop and back.

mod answer;
mod buy;
mod count;
mod door;
mod order;
mod page;

use std::future::Future;
use std::net::TcpListener;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use actix_http::{Request, Response};
use actix_service::{Service, apply_fn_factory};
use actix_web::body::BoxBody;
use actix_web::dev::{AppConfig, Server, ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::http::{StatusCode, header};
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, Error, HttpRequest, HttpResponse, web};
use consumer::web::{Capacity, within_limits};
use serde::Deserialize;

use crate::desk::Desk;
use crate::gate::Window;
use crate::item::Item;
use crate::metrics::Metrics;
use crate::shop::Shop;
use answer::{Code, problem};
use door::Way;

/// Open connections: at 12 KiB for an idle one and 21 KiB for one that waits, a gigabyte.
const MAX_CONNECTIONS: usize = 50_000;
/// Open files that are not buyers: servers, the embedded file, ops, libraries.
const RESERVED_FILES: u64 = 512;
/// How long a shut-down waits for buyers in flight: a buyer has an answer within 5 s.
const SHUTDOWN_S: u64 = 6;

/// What the handlers share.
pub struct Front {
    /// Who decides.
    pub shop: Arc<Shop>,
    /// When it is open.
    pub window: Window,
    /// What is counted.
    pub metrics: Metrics,
}

/// Serves buyers on `listener`, with a worker for each core. Of `open_files`, the process' limit,
/// enough stay for everything else.
///
/// # Errors
/// When the listener cannot be used.
pub fn serve(listener: TcpListener, front: Front, open_files: u64) -> std::io::Result<Server> {
    let files = usize::try_from(open_files.saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX);
    let capacity = Capacity {
        workers: workers(),
        connections: files.min(MAX_CONNECTIONS),
        shutdown_s: SHUTDOWN_S,
        newest_first: false,
    };
    let front = web::Data::new(front);
    consumer::web::serve(listener, capacity, move || service(front.clone()))
}

/// A thread for each core.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Open files without which not even one buyer could be served by each worker.
#[must_use]
pub fn files_needed() -> u64 {
    RESERVED_FILES + workers() as u64
}

/// What one worker has: the door, and behind it the application.
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
    let worker = Rc::new(Worker { front, desk: web::Data::new(Desk::open()) });
    apply_fn_factory(app(&worker), move |request: Request, app| {
        let answer = match door::way(&request, &worker) {
            Some(Way::Answered(answer)) => Answer::Now(answer),
            Some(Way::Buy(item)) => {
                let worker = Rc::clone(&worker);
                Answer::Later(Box::pin(async move {
                    Ok(buy::answer(&request, Ok(item), &worker.front, &worker.desk).await.into())
                }))
            }
            None => {
                let answer = app.call(request);
                Answer::Later(Box::pin(async { answer.await.map(Into::into) }))
            }
        };
        async {
            match answer {
                Answer::Now(answer) => Ok(answer.into()),
                Answer::Later(answer) => answer.await,
            }
        }
    })
}

enum Answer {
    Now(HttpResponse),
    Later(Pin<Box<dyn Future<Output = Result<Response<BoxBody>, Error>>>>),
}

/// What one worker's handlers share.
struct Worker {
    front: web::Data<Front>,
    desk: web::Data<Desk>,
}

/// Everything that can be asked for.
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
        .app_data(worker.desk.clone())
        .app_data(web::QueryConfig::default().error_handler(|error, request| {
            let answer = problem(request, Code::BadRequest, Some(&error.to_string()));
            actix_web::error::InternalError::from_response(error, answer).into()
        }))
        .wrap(from_fn(limited))
        // In the order in which they are asked for.
        .service(resource("/seckill/seckill", "POST").route(web::post().to(buy::buy)))
        .service(resource("/seckill/getCount", "GET").route(web::get().to(count::count)))
        .service(resource("/seckill/orders/{order}", "GET").route(web::get().to(order::order)))
        .configure(page::routes)
        .default_service(web::to(async |request: HttpRequest| problem(&request, Code::NotFound, None)))
}

/// Refuses what is too large or too slow in the form of every other refusal.
async fn limited(request: ServiceRequest, next: Next<BoxBody>) -> Result<ServiceResponse, Error> {
    let (request, code) = match within_limits(request).await {
        Ok(request) => return next.call(request).await,
        Err((request, StatusCode::PAYLOAD_TOO_LARGE)) => (request, Code::BodyTooLarge),
        Err((request, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)) => (request, Code::HeadTooLarge),
        Err((request, StatusCode::REQUEST_TIMEOUT)) => (request, Code::TooSlow),
        Err((request, _)) => (request, Code::BadRequest),
    };
    let answer = problem(&request, code, None);
    Ok(ServiceResponse::new(request, answer))
}

/// A path that says which methods it knows.
fn resource(path: &str, methods: &'static str) -> actix_web::Resource {
    web::resource(path).default_service(web::to(move |request: HttpRequest| async move {
        let mut answer = problem(&request, Code::MethodNotAllowed, None);
        answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(methods));
        answer
    }))
}

#[derive(Deserialize)]
struct Query {
    item: Option<String>,
}

impl Query {
    /// The item asked for; what is wrong, if it cannot be one.
    fn item(&self) -> Result<Item, String> {
        match self.item.as_deref() {
            None => Ok(Item::default()),
            Some(name) => name.parse().map_err(|why| format!("item: {why}")),
        }
    }
}
