//! Ops endpoints of both programs: `/livez`, `/readyz`, `/metrics`, and optionally `/openapi.json`.

use std::net::TcpListener;
use std::sync::Arc;

use actix_web::body::BoxBody;
use actix_web::dev::{Server, ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::{DefaultHeaders, Next, from_fn};
use actix_web::{App, Error, HttpRequest, HttpResponse, web};
use prometheus::{Encoder, IntGauge, Registry, TextEncoder};
use serde_json::json;

use crate::service::web::{Capacity, within_limits};

/// Enough for one scraper, one probe and a few people. Long-lived connections must not block the next probe.
const CAPACITY: Capacity = Capacity { workers: 1, connections: 100, shutdown_s: 1, newest_first: true };

/// The methods of every path here.
const ALLOW: &str = "GET, HEAD, OPTIONS";

const TEXT: &str = "text/plain; charset=utf-8";

/// Whether the program is ready; if not, why.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

struct Ops {
    registry: Registry,
    /// The `/readyz` state, as a metric.
    readiness: IntGauge,
    ready: Ready,
    /// The API of the program's clients, as OpenAPI.
    contract: Option<String>,
}

/// Serves the endpoints on `listener`; the server runs when awaited or spawned.
///
/// # Errors
/// When the listener is unusable, or the registry has a metric of this name.
pub fn serve(
    listener: TcpListener,
    registry: Registry,
    ready: Ready,
    contract: Option<String>,
) -> std::io::Result<Server> {
    let register = || -> prometheus::Result<IntGauge> {
        let readiness = IntGauge::new("seckill_ready", "1 while /readyz answers 200")?;
        registry.register(Box::new(readiness.clone())).map(|()| readiness)
    };
    let readiness = register().map_err(std::io::Error::other)?;
    // The standard process metrics; available on Linux only.
    #[cfg(target_os = "linux")]
    drop(registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self())));
    let ops = web::Data::new(Ops { registry, readiness, ready, contract });
    crate::service::web::serve(listener, CAPACITY, Arc::new(words), move || {
        let contract = |app: &mut web::ServiceConfig| {
            if ops.contract.is_some() {
                let openapi =
                    resource("/openapi.json").route(web::get().to(openapi)).route(web::head().to(openapi));
                app.service(openapi);
            }
        };
        App::new()
            .app_data(ops.clone())
            .wrap(from_fn(limited))
            .wrap(
                DefaultHeaders::new()
                    .add((header::CACHE_CONTROL, "no-store"))
                    .add((header::X_CONTENT_TYPE_OPTIONS, "nosniff")),
            )
            .service(resource("/livez").route(web::get().to(livez)).route(web::head().to(livez)))
            .service(resource("/readyz").route(web::get().to(readyz)).route(web::head().to(readyz)))
            .service(resource("/metrics").route(web::get().to(metrics)).route(web::head().to(metrics)))
            .configure(contract)
            .default_service(web::to(async || problem(StatusCode::NOT_FOUND)))
    })
}

async fn limited(request: ServiceRequest, next: Next<BoxBody>) -> Result<ServiceResponse, Error> {
    match within_limits(request).await {
        Ok((request, _)) => next.call(request).await,
        Err((request, status)) => Ok(ServiceResponse::new(request, problem(status))),
    }
}

/// A path that reports its allowed methods.
fn resource(path: &str) -> actix_web::Resource {
    web::resource(path).default_service(web::to(async |request: HttpRequest| {
        let mut answer = if request.method() == Method::OPTIONS {
            HttpResponse::NoContent().finish()
        } else {
            problem(StatusCode::METHOD_NOT_ALLOWED)
        };
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(ALLOW));
        answer
    }))
}

fn problem(status: StatusCode) -> HttpResponse {
    HttpResponse::build(status).content_type("application/problem+json; charset=utf-8").body(words(status))
}

/// A problem body (RFC 9457).
fn words(status: StatusCode) -> String {
    json!({ "type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16() })
        .to_string()
}

async fn livez() -> HttpResponse {
    HttpResponse::Ok().content_type(TEXT).body("ok")
}

async fn readyz(ops: web::Data<Ops>) -> HttpResponse {
    match (ops.ready)() {
        Ok(()) => HttpResponse::Ok().content_type(TEXT).body("ok"),
        Err(why) => HttpResponse::ServiceUnavailable().content_type(TEXT).body(why),
    }
}

async fn openapi(ops: web::Data<Ops>) -> HttpResponse {
    match &ops.contract {
        Some(contract) => {
            HttpResponse::Ok().content_type("application/json; charset=utf-8").body(contract.clone())
        }
        None => problem(StatusCode::NOT_FOUND),
    }
}

async fn metrics(ops: web::Data<Ops>) -> HttpResponse {
    ops.readiness.set(i64::from((ops.ready)().is_ok()));
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&ops.registry.gather(), &mut text) {
        Ok(()) => HttpResponse::Ok().content_type(encoder.format_type()).body(text),
        Err(error) => HttpResponse::InternalServerError().content_type(TEXT).body(error.to_string()),
    }
}
