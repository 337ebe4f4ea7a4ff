//! Where a thread's buyers get their answers: many are handed over at once, so that a thread is
//! woken once for all of them.

use tokio::sync::{mpsc, oneshot};

use crate::sale::Purchase;

/// An answer, and who waits for it.
type Answered = (oneshot::Sender<Purchase>, Purchase);

/// One thread's desk; a clone is the same.
#[derive(Debug, Clone)]
pub struct Desk(mpsc::UnboundedSender<Vec<Answered>>);

impl Desk {
    /// Opens a desk in the runtime that this is called in.
    #[must_use]
    pub fn open() -> Self {
        // Not more than attempts that wait, which are bounded.
        let (hand_over, mut handed) = mpsc::unbounded_channel::<Vec<Answered>>();
        tokio::spawn(async move {
            while let Some(answers) = handed.recv().await {
                answers.into_iter().for_each(tell);
            }
        });
        Self(hand_over)
    }

    /// Somebody who waits at this desk, and what is waited for.
    pub fn wait(&self) -> (Buyer, oneshot::Receiver<Purchase>) {
        let (answer, answered) = oneshot::channel();
        (Buyer { desk: self.clone(), answer }, answered)
    }
}

/// Somebody who waits at a desk. Who is let go without an answer hears that nobody knows.
#[derive(Debug)]
pub struct Buyer {
    desk: Desk,
    answer: oneshot::Sender<Purchase>,
}

/// Answers on their way to their desks, which get them when this is dropped.
#[derive(Debug, Default)]
pub struct Answers(Vec<(Desk, Vec<Answered>)>);

impl Answers {
    /// One more.
    pub fn add(&mut self, buyer: Buyer, told: Purchase) {
        let Buyer { desk, answer } = buyer;
        // As many desks as cores.
        match self.0.iter_mut().find(|(known, _)| known.0.same_channel(&desk.0)) {
            Some((_, answers)) => answers.push((answer, told)),
            None => self.0.push((desk, vec![(answer, told)])),
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        for (desk, answers) in self.0.drain(..) {
            // Its thread is gone; somebody may wait elsewhere all the same.
            if let Err(mpsc::error::SendError(answers)) = desk.0.send(answers) {
                answers.into_iter().for_each(tell);
            }
        }
    }
}

fn tell((answer, told): Answered) {
    // Who hung up is told nothing.
    let _ = answer.send(told);
}
