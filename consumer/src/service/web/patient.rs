//! Slow-loris protection and eviction: a connection that closes when its client is too slow or its slot is
//! needed, and that fixes request heads for the library.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_web::rt::net::TcpStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Refuse;
use super::guests::Guest;
use super::head::{Mended, is_alone, mend};
use super::refusal;

/// From the first byte of a request to the first of its answer: head, body, and the 5 s answer limit. Bytes
/// sent after an answer count too.
const UNANSWERED_WITHIN: Duration = Duration::from_secs(15);

/// Not an answer, but a request for more.
const CONTINUE: &[u8] = b" 100 Continue\r\n\r\n";

/// A client that reads nothing from a full connection for this long is gone.
const UNREAD_WITHIN: Duration = Duration::from_secs(10);

/// The guarded connection.
pub(super) struct Patient {
    stream: TcpStream,
    guest: Option<Rc<Guest>>,
    /// Runs from the first byte of a request to the first of an answer.
    unanswered: Deadline,
    /// Runs while the client reads nothing.
    unread: Deadline,
    /// Whether all input so far was heads, one at a time: then the next input is a head too.
    heads_alone: bool,
    /// An incomplete head.
    held: Vec<u8>,
    /// The rest of a complete head, for the library to read.
    head: Vec<u8>,
    /// Replaces the library's own refusal; with the bytes written so far.
    instead: Option<(Vec<u8>, usize)>,
    refuse: Refuse,
}

impl Patient {
    pub(super) fn new(stream: TcpStream, guest: Option<Rc<Guest>>, refuse: Refuse) -> Self {
        let (unanswered, unread) = (Deadline::default(), Deadline::default());
        Self {
            stream,
            guest,
            unanswered,
            unread,
            heads_alone: true,
            held: Vec::new(),
            head: Vec::new(),
            instead: None,
            refuse,
        }
    }

    fn leaves(&self, cx: &Context<'_>) -> bool {
        self.guest.as_ref().is_some_and(|guest| guest.leaves(cx))
    }

    /// Takes the bytes read since `before` if they begin a request whose head is incomplete or needs a fix.
    fn hold(&mut self, into: &mut ReadBuf<'_>, before: usize) -> bool {
        let read = &mut into.filled_mut()[before..];
        if self.held.is_empty() {
            match mend(read) {
                Mended::AsItIs => {
                    self.heads_alone = is_alone(read);
                    return false;
                }
                Mended::Wait => self.held.extend_from_slice(read),
                Mended::Instead(head) => self.head = head,
            }
        } else {
            self.held.extend_from_slice(read);
            match mend(&mut self.held) {
                Mended::Wait => {}
                Mended::AsItIs => self.head = std::mem::take(&mut self.held),
                Mended::Instead(head) => {
                    self.held.clear();
                    self.head = head;
                }
            }
        }
        self.heads_alone = self.head.is_empty() || is_alone(&self.head);
        into.set_filled(before);
        true
    }

    /// Updates the deadlines after a write.
    fn written(
        &mut self,
        from: &[u8],
        written: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            self.unread.set(UNREAD_WITHIN);
            return if self.unread.passed(cx) || self.leaves(cx) {
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            } else {
                Poll::Pending
            };
        }
        self.unread.clear();
        if !from.ends_with(CONTINUE) {
            self.unanswered.clear();
        }
        written
    }
}

/// A deadline that is usually cleared before it passes: that costs a clock read, and no timer.
#[derive(Default)]
struct Deadline {
    at: Option<Instant>,
    /// Set for this deadline, or for an earlier one that was cleared.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Starts it, unless it is set already.
    fn set(&mut self, within: Duration) {
        self.at.get_or_insert_with(|| Instant::now() + within);
    }

    fn clear(&mut self) {
        self.at = None;
    }

    /// Whether it has passed; wakes the task when it does.
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
            // Looks like a client disconnect: pending answers are still written.
            return Poll::Ready(Ok(()));
        }
        loop {
            if !this.head.is_empty() {
                let some = this.head.len().min(into.remaining());
                into.put_slice(&this.head[..some]);
                this.head.drain(..some);
                return Poll::Ready(Ok(()));
            }
            let before = into.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, into))?;
            if into.filled().len() == before {
                if this.held.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                // The input ended within a head: the library refuses it.
                this.head = std::mem::take(&mut this.held);
                continue;
            }
            let begins = this.heads_alone && (this.unanswered.at.is_none() || !this.held.is_empty());
            this.unanswered.set(UNANSWERED_WITHIN);
            // More input before an answer: its boundaries are unknown here.
            this.heads_alone &= begins;
            if !(begins && this.hold(into, before)) {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Patient {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut from = from;
        if this.instead.is_none()
            && let Some((at, status)) = refusal::wordless(from)
        {
            if at > 0 {
                from = &from[..at];
            } else {
                this.instead = Some((refusal::with_words(status, &(this.refuse)(status)), 0));
            }
        }
        while let Some((words, sent)) = &mut this.instead {
            if *sent == words.len() {
                this.instead = None;
                return Poll::Ready(Ok(from.len()));
            }
            let written = Pin::new(&mut this.stream).poll_write(cx, &words[*sent..]);
            let written = ready!(this.written(from, written, cx))?;
            if let Some((_, sent)) = &mut this.instead {
                *sent += written;
            }
        }
        let written = Pin::new(&mut this.stream).poll_write(cx, from);
        this.written(from, written, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
