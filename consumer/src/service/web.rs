//! The HTTP server of both programs, with limits against slow-loris clients and oversized requests.
//!
//! The library only limits the time of a connection's first head. `patient` adds the rest: it closes the
//! connection of a client that sends slowly, never ends, or does not read.

mod guests;
mod head;
mod patient;
mod refusal;

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_http::{HttpService, Protocol, Request, Response};
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt as _, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, ServiceRequest};
use actix_web::http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use actix_web::http::{StatusCode, Uri};
use actix_web::rt::net::TcpStream;
use actix_web::web::Bytes;
use actix_web::{Error, HttpRequest, web};
use guests::Guests;
use patient::Patient;
use tokio::time::timeout;

/// Timeout of a connection's first head, however its bytes arrive.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

/// Timeout of a body, enough for a bad line.
const BODY_WITHIN: Duration = Duration::from_secs(5);

/// Keep-alive of an idle connection: a page polls every second.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// How long input after an answer is discarded, so that the client sees the answer.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes of a request's line and headers; browsers stay below 2 KiB. The library refuses heads incomplete at
/// 128 KiB, and more than 96 headers.
const MAX_HEAD: usize = 16 * 1024;

/// Bytes of a body: none is needed, but clients send small ones out of habit.
const MAX_BODY: usize = 4 * 1024;

/// The capacity of a server.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    /// Threads.
    pub workers: usize,
    /// Open connections on all threads together; more wait to be accepted.
    pub connections: usize,
    /// How long a shutdown waits for requests in flight, in seconds.
    pub shutdown_s: u64,
    /// Excess connections do not wait: the oldest one is closed for a new one.
    pub newest_first: bool,
}

/// Raises the limit of open files as far as possible and returns it.
///
/// # Errors
/// When it stays below `needed`: why, and what to do.
pub fn open_files(needed: u64) -> Result<u64, String> {
    let limit = rlimit::increase_nofile_limit(u64::MAX)
        .or_else(|_| rlimit::Resource::NOFILE.get_soft())
        .map_err(|error| format!("the limit of open files cannot be read: {error}"))?;
    if limit < needed {
        return Err(format!(
            "this process may have {limit} open files and needs at least {needed}; raise the hard limit, with \
             `ulimit -Hn` as root, LimitNOFILE= in a systemd unit, or --ulimit nofile= for a container"
        ));
    }
    Ok(limit)
}

/// The answer to a request that the library refuses: the body of a problem (RFC 9457), by status.
pub type Refuse = Arc<dyn Fn(StatusCode) -> String + Send + Sync>;

/// Serves `app` on `listener`; the server runs when awaited or spawned.
///
/// # Errors
/// When the listener is unusable.
pub fn serve<F, I, S, B>(
    listener: TcpListener,
    capacity: Capacity,
    refuse: Refuse,
    app: F,
) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<Error> + 'static,
    S::InitError: std::fmt::Debug,
    S::Response: Into<Response<B>> + 'static,
    B: MessageBody + 'static,
{
    let Capacity { workers, connections, shutdown_s, newest_first } = capacity;
    let each = (connections / workers).max(1);
    let server = Server::build()
        .workers(workers)
        // Leaves room for connections that are closing.
        .max_concurrent_connections(if newest_first { each * 2 } else { each })
        .shutdown_timeout(shutdown_s)
        // The program handles them.
        .disable_signals();
    let stopping = server.graceful_shutdown_signal();
    let server = server.listen("http", listener, move || {
        let (stopping, refuse) = (stopping.clone(), Arc::clone(&refuse));
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .client_request_timeout(HEAD_WITHIN)
            .keep_alive(KEEP_ALIVE)
            .client_disconnect_timeout(LINGER);
        let app = app().into_factory().map_err(|error| error.into().error_response());
        let http = http.finish(map_config(app, |()| AppConfig::default()));
        let guests = newest_first.then(|| Rc::new(Guests::new(each)));
        actix_service::fn_service(move |stream: TcpStream| {
            // Answers are small, and none waits for the next.
            let _ = stream.set_nodelay(true);
            let peer = stream.peer_addr().ok();
            let patient =
                Patient::new(stream, guests.as_ref().map(|guests| guests.welcome()), Arc::clone(&refuse));
            async move { Ok((patient, Protocol::Http1, peer)) }
        })
        .and_then(http)
    })?;
    Ok(server.run())
}

/// Reads the whole body, within the limits: an unread one would close the connection.
///
/// # Errors
/// The request, and the status to refuse it with.
pub async fn within_limits(
    mut request: ServiceRequest,
) -> Result<(ServiceRequest, Bytes), (HttpRequest, StatusCode)> {
    let refused = |request: ServiceRequest, status| Err((request.into_parts().0, status));
    let headers = request.headers();
    if !fits(headers, request.uri()) {
        return refused(request, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    let length =
        headers.get(CONTENT_LENGTH).map(|length| length.to_str().ok().and_then(|it| it.parse().ok()));
    match length {
        None if !headers.contains_key(TRANSFER_ENCODING) => return Ok((request, Bytes::new())),
        Some(length) if length.is_none_or(|bytes: usize| bytes > MAX_BODY) => {
            return refused(request, StatusCode::PAYLOAD_TOO_LARGE);
        }
        _ => {}
    }
    let Ok(body) = request.extract::<web::Payload>().await else {
        return refused(request, StatusCode::BAD_REQUEST);
    };
    match timeout(BODY_WITHIN, body.to_bytes_limited(MAX_BODY)).await {
        Ok(Ok(Ok(body))) => Ok((request, body)),
        Ok(Ok(Err(_))) => refused(request, StatusCode::BAD_REQUEST),
        Ok(Err(_)) => refused(request, StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => refused(request, StatusCode::REQUEST_TIMEOUT),
    }
}

/// Whether a request has no body, and a head that [`fits`].
#[must_use]
pub fn is_plain(headers: &HeaderMap, uri: &Uri) -> bool {
    // By going through them: looking one up costs more than comparing all names.
    let has_body = |(name, value): (&HeaderName, &HeaderValue)| {
        *name == TRANSFER_ENCODING || (*name == CONTENT_LENGTH && value != "0")
    };
    !headers.iter().any(has_body) && fits(headers, uri)
}

/// Whether a head is within the limit.
#[must_use]
pub fn fits(headers: &HeaderMap, uri: &Uri) -> bool {
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    let head: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    head + target <= MAX_HEAD
}
