//! What a client can ask for, one file each; straight lines from a request to the shop and back.

mod answer;
mod buy;
mod count;
mod order;
mod page;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::http::header;
use actix_web::middleware::DefaultHeaders;
use actix_web::{App, HttpRequest, HttpServer, web};
use serde::Deserialize;

use crate::gate::Window;
use crate::item::Item;
use crate::metrics::Metrics;
use crate::shop::Shop;
use answer::{Code, problem};

/// A request's head must be there within this time.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// An idle connection is kept so long: a page polls every second.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Connections that may wait to be accepted: a whole sale arrives in one second.
const BACKLOG: u32 = 8192;
/// Open connections on each worker.
const MAX_CONNECTIONS: usize = 25_000;
/// How long a shut-down waits for buyers in flight: a buyer has an answer within 5 s.
const SHUTDOWN_S: u64 = 6;

/// Nothing from elsewhere, nothing inline.
const CONTENT_SECURITY_POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the handlers share.
pub struct Front {
    /// Who decides.
    pub shop: Arc<Shop>,
    /// When it is open.
    pub window: Window,
    /// What is counted.
    pub metrics: Metrics,
}

/// Serves buyers on `listener`, with a worker for each core.
///
/// # Errors
/// When the listener cannot be used.
pub fn serve(listener: TcpListener, front: Front) -> std::io::Result<Server> {
    let front = web::Data::new(front);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(front.clone())
            .app_data(web::QueryConfig::default().error_handler(|error, request| {
                let answer = problem(request, Code::BadRequest, Some(&error.to_string()));
                actix_web::error::InternalError::from_response(error, answer).into()
            }))
            .wrap(
                DefaultHeaders::new()
                    .add((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
                    .add((header::REFERRER_POLICY, "no-referrer"))
                    .add((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY)),
            )
            .configure(page::routes)
            .service(resource("/seckill/seckill", "POST").route(web::post().to(buy::buy)))
            .service(resource("/seckill/getCount", "GET").route(web::get().to(count::count)))
            .service(resource("/seckill/orders/{order}", "GET").route(web::get().to(order::order)))
            .default_service(web::to(async |request: HttpRequest| problem(&request, Code::NotFound, None)))
    })
    .client_request_timeout(HEAD_WITHIN)
    .keep_alive(KEEP_ALIVE)
    .backlog(BACKLOG)
    .max_connections(MAX_CONNECTIONS)
    .shutdown_timeout(SHUTDOWN_S)
    .disable_signals()
    .listen(listener)?;
    Ok(server.run())
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
