//! How both programs serve HTTP: with a limit on everything that a client can make them hold.
//!
//! The library knows a time limit for a connection's first head only. `Patient` adds the rest:
//! whatever a client sends slowly, never ends, or does not read, its connection is closed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use actix_http::{HttpService, Protocol, Request, Response};
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt as _, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, ServiceRequest};
use actix_web::http::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use actix_web::http::{StatusCode, Uri};
use actix_web::rt::net::TcpStream;
use actix_web::{Error, HttpRequest, web};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

/// A connection's first head must be there within this time, however its bytes arrive.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

/// And a body within this one, which is time for a bad line.
const BODY_WITHIN: Duration = Duration::from_secs(5);

/// From the first byte of a request to the first of its answer: head, body, and the 5 s within
/// which everything is answered. Also what is sent on after an answer counts.
const UNANSWERED_WITHIN: Duration = Duration::from_secs(15);

/// A client that takes nothing off a full connection for so long is gone.
const UNREAD_WITHIN: Duration = Duration::from_secs(10);

/// An idle connection is kept so long: a page polls every second.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// What an answered client still sends is thrown away for so long, so that it sees the answer.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes of a request's line and headers; browsers stay below 2 KiB. What is longer and still
/// not complete at 128 KiB is refused by the library, and so are more than 96 headers.
const MAX_HEAD: usize = 16 * 1024;

/// Bytes of a body: nobody needs any, and clients send small ones out of habit.
const MAX_BODY: usize = 4 * 1024;

/// What a server may take.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    /// Threads.
    pub workers: usize,
    /// Open connections on all of them together; more wait to be accepted.
    pub connections: usize,
    /// How long a shut-down waits for requests in flight, in seconds.
    pub shutdown_s: u64,
    /// More do not wait: the oldest connection is closed for a new one.
    pub newest_first: bool,
}

/// Raises the limit of open files as far as it goes, and says how far that is.
///
/// # Errors
/// When `needed` are not to be had: why, and what to do.
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

/// Serves what `app` makes on `listener`; the server runs when it is awaited or spawned.
///
/// # Errors
/// When the listener cannot be used.
pub fn serve<F, I, S, B>(listener: TcpListener, capacity: Capacity, app: F) -> io::Result<Server>
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
        // With room for those that are about to be closed.
        .max_concurrent_connections(if newest_first { each * 2 } else { each })
        .shutdown_timeout(shutdown_s)
        // For the program to handle.
        .disable_signals();
    let stopping = server.graceful_shutdown_signal();
    let server = server.listen("http", listener, move || {
        let stopping = stopping.clone();
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
        let guests = newest_first.then(|| Rc::new(Guests { most: each, list: RefCell::default() }));
        actix_service::fn_service(move |stream: TcpStream| {
            // Answers are small, and none waits for the next.
            let _ = stream.set_nodelay(true);
            let peer = stream.peer_addr().ok();
            let guest = guests.as_ref().map(|guests| guests.welcome());
            std::future::ready(Ok((Patient::new(stream, guest), Protocol::Http1, peer)))
        })
        .and_then(http)
    })?;
    Ok(server.run())
}

/// Reads the body to its end and throws it away, within the limits: nothing here has a use for
/// one, and an unread one would end the connection.
///
/// # Errors
/// The request, and the status to refuse it with.
pub async fn within_limits(mut request: ServiceRequest) -> Result<ServiceRequest, (HttpRequest, StatusCode)> {
    let refused = |request: ServiceRequest, status| Err((request.into_parts().0, status));
    let headers = request.headers();
    if !fits(headers, request.uri()) {
        return refused(request, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    let length =
        headers.get(CONTENT_LENGTH).map(|length| length.to_str().ok().and_then(|it| it.parse().ok()));
    match length {
        None if !headers.contains_key(TRANSFER_ENCODING) => return Ok(request),
        Some(length) if length.is_none_or(|bytes: usize| bytes > MAX_BODY) => {
            return refused(request, StatusCode::PAYLOAD_TOO_LARGE);
        }
        _ => {}
    }
    let Ok(body) = request.extract::<web::Payload>().await else {
        return refused(request, StatusCode::BAD_REQUEST);
    };
    match timeout(BODY_WITHIN, body.to_bytes_limited(MAX_BODY)).await {
        Ok(Ok(Ok(_))) => Ok(request),
        Ok(Ok(Err(_))) => refused(request, StatusCode::BAD_REQUEST),
        Ok(Err(_)) => refused(request, StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => refused(request, StatusCode::REQUEST_TIMEOUT),
    }
}

/// Whether a head is no longer than a head may be.
#[must_use]
pub fn fits(headers: &HeaderMap, uri: &Uri) -> bool {
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    let head: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    head + target <= MAX_HEAD
}

/// A worker's connections, in the order in which they came.
struct Guests {
    most: usize,
    list: RefCell<VecDeque<Weak<Guest>>>,
}

/// A connection that may be asked to go.
#[derive(Default)]
struct Guest {
    leaves: Cell<bool>,
    /// Who waits for its bytes.
    task: RefCell<Option<Waker>>,
}

impl Guests {
    /// One more; the oldest have to go for it.
    fn welcome(&self) -> Rc<Guest> {
        let mut list = self.list.borrow_mut();
        list.retain(|guest| guest.strong_count() > 0);
        while list.len() >= self.most {
            if let Some(guest) = list.pop_front().and_then(|guest| guest.upgrade()) {
                guest.leaves.set(true);
                guest.task.take().into_iter().for_each(Waker::wake);
            }
        }
        let guest = Rc::new(Guest::default());
        list.push_back(Rc::downgrade(&guest));
        guest
    }
}

impl Guest {
    /// Whether it has to go; wakes the task when it has to.
    fn leaves(&self, cx: &Context<'_>) -> bool {
        if !self.leaves.get() {
            self.task.borrow_mut().get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
        }
        self.leaves.get()
    }
}

/// A connection that ends when its client keeps us waiting, or when its place is needed.
struct Patient {
    stream: TcpStream,
    guest: Option<Rc<Guest>>,
    /// From the first byte of a request until something is answered.
    unanswered: Deadline,
    /// While the client takes nothing.
    unread: Deadline,
}

impl Patient {
    fn new(stream: TcpStream, guest: Option<Rc<Guest>>) -> Self {
        Self { stream, guest, unanswered: Deadline::default(), unread: Deadline::default() }
    }

    fn leaves(&self, cx: &Context<'_>) -> bool {
        self.guest.as_ref().is_some_and(|guest| guest.leaves(cx))
    }

    /// Notes what a write came to.
    fn written(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            self.unread.set(UNREAD_WITHIN);
            return if self.unread.passed(cx) || self.leaves(cx) {
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            } else {
                Poll::Pending
            };
        }
        self.unread.clear();
        self.unanswered.clear();
        written
    }
}

/// A time that is mostly taken back before it comes: that costs a look at the clock, and no timer.
#[derive(Default)]
struct Deadline {
    at: Option<Instant>,
    /// Set for this deadline, or for an earlier one that was taken back.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// From now on, unless it is set already.
    fn set(&mut self, within: Duration) {
        self.at.get_or_insert_with(|| Instant::now() + within);
    }

    fn clear(&mut self) {
        self.at = None;
    }

    /// Whether it has come; wakes the task when it does.
    fn passed(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(at) = self.at else { return false };
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(at)));
        while alarm.as_mut().poll(cx).is_ready() {
            if alarm.deadline() >= at {
                return true;
            }
            alarm.as_mut().reset(at);
        }
        false
    }
}

impl AsyncRead for Patient {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unanswered.passed(cx) || this.leaves(cx) {
            // As if the client had ended: whatever is still to be answered is.
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, into))?;
        if into.filled().len() > before {
            this.unanswered.set(UNANSWERED_WITHIN);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Patient {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, from);
        this.written(written, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
