//! Per-thread reply mailbox: a batch of answers costs a thread one wake-up.

use tokio::sync::{mpsc, oneshot};

use crate::sale::Purchase;

/// An answer and the channel it goes to.
type Answered = (oneshot::Sender<Purchase>, Purchase);

/// One thread's mailbox; clones share it.
#[derive(Debug, Clone)]
pub struct Mailbox(mpsc::UnboundedSender<Vec<Answered>>);

impl Mailbox {
    /// Opens a mailbox in the current runtime.
    #[must_use]
    pub fn open() -> Self {
        // Unbounded, but never holds more than the waiting attempts, which are bounded.
        let (hand_over, mut handed) = mpsc::unbounded_channel::<Vec<Answered>>();
        tokio::spawn(async move {
            while let Some(answers) = handed.recv().await {
                answers.into_iter().for_each(tell);
            }
        });
        Self(hand_over)
    }

    /// Registers a request at this mailbox; returns its reply handle and its receiver.
    pub fn wait(&self) -> (Waiter, oneshot::Receiver<Purchase>) {
        let (answer, answered) = oneshot::channel();
        (Waiter { mailbox: self.clone(), answer }, answered)
    }
}

/// A request waiting at a mailbox. Dropped without an answer, it counts as `pending`.
#[derive(Debug)]
pub struct Waiter {
    mailbox: Mailbox,
    answer: oneshot::Sender<Purchase>,
}

/// Replies grouped by mailbox; delivered on drop.
#[derive(Debug, Default)]
pub struct Replies(Vec<(Mailbox, Vec<Answered>)>);

impl Replies {
    /// Adds an answer.
    pub fn add(&mut self, waiter: Waiter, told: Purchase) {
        let Waiter { mailbox, answer } = waiter;
        // At most one mailbox per core.
        match self.0.iter_mut().find(|(known, _)| known.0.same_channel(&mailbox.0)) {
            Some((_, answers)) => answers.push((answer, told)),
            None => self.0.push((mailbox, vec![(answer, told)])),
        }
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        for (mailbox, answers) in self.0.drain(..) {
            // The mailbox's thread is gone, but the receiver may still be waiting elsewhere.
            if let Err(mpsc::error::SendError(answers)) = mailbox.0.send(answers) {
                answers.into_iter().for_each(tell);
            }
        }
    }
}

fn tell((answer, told): Answered) {
    // Fails only after a client disconnect.
    let _ = answer.send(told);
}
