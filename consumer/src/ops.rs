//! What ops ask of either program: `/livez`, `/readyz`, `/metrics`.

use std::net::TcpListener;
use std::sync::Arc;

use actix_web::body::BoxBody;
use actix_web::dev::{Server, ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, ContentType};
use actix_web::middleware::{DefaultHeaders, Next, from_fn};
use actix_web::{App, Error, HttpResponse, web};
use prometheus::{Encoder, IntGauge, Registry, TextEncoder};

use crate::web::{Capacity, within_limits};

/// One scraper and one probe need no more, and some people who look. Who holds a connection for
/// long must not keep the next probe out.
const CAPACITY: Capacity = Capacity { workers: 1, connections: 100, shutdown_s: 1, newest_first: true };

/// Says whether the program can do its work now; if not, why.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

struct Ops {
    registry: Registry,
    /// What `/readyz` says, as a metric.
    readiness: IntGauge,
    ready: Ready,
}

/// Serves them on `listener`; the server runs when it is awaited or spawned.
///
/// # Errors
/// When the listener cannot be used, or the registry has a metric of this name.
pub fn serve(listener: TcpListener, registry: Registry, ready: Ready) -> std::io::Result<Server> {
    let register = || -> prometheus::Result<IntGauge> {
        let readiness = IntGauge::new("seckill_ready", "1 while /readyz answers 200")?;
        registry.register(Box::new(readiness.clone())).map(|()| readiness)
    };
    let readiness = register().map_err(std::io::Error::other)?;
    let ops = web::Data::new(Ops { registry, readiness, ready });
    crate::web::serve(listener, CAPACITY, move || {
        App::new()
            .app_data(ops.clone())
            .wrap(from_fn(limited))
            .wrap(
                DefaultHeaders::new()
                    .add((header::CACHE_CONTROL, "no-store"))
                    .add((header::X_CONTENT_TYPE_OPTIONS, "nosniff")),
            )
            .route("/livez", web::get().to(livez))
            .route("/readyz", web::get().to(readyz))
            .route("/metrics", web::get().to(metrics))
    })
}

async fn limited(request: ServiceRequest, next: Next<BoxBody>) -> Result<ServiceResponse, Error> {
    match within_limits(request).await {
        Ok(request) => next.call(request).await,
        Err((request, status)) => Ok(ServiceResponse::new(request, HttpResponse::new(status))),
    }
}

async fn livez() -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::plaintext()).body("ok")
}

async fn readyz(ops: web::Data<Ops>) -> HttpResponse {
    match (ops.ready)() {
        Ok(()) => HttpResponse::Ok().content_type(ContentType::plaintext()).body("ok"),
        Err(why) => HttpResponse::ServiceUnavailable().content_type(ContentType::plaintext()).body(why),
    }
}

async fn metrics(ops: web::Data<Ops>) -> HttpResponse {
    ops.readiness.set(i64::from((ops.ready)().is_ok()));
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&ops.registry.gather(), &mut text) {
        Ok(()) => HttpResponse::Ok().content_type(encoder.format_type()).body(text),
        Err(error) => HttpResponse::InternalServerError().body(error.to_string()),
    }
}
