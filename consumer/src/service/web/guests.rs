//! Connection eviction: at the limit, the oldest connection is closed for a new one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::task::{Context, Waker};

/// A worker's connections, oldest first.
pub(super) struct Guests {
    most: usize,
    list: RefCell<VecDeque<Weak<Guest>>>,
}

/// A connection that may be evicted.
#[derive(Default)]
pub(super) struct Guest {
    leaves: Cell<bool>,
    /// The waiting task.
    task: RefCell<Option<Waker>>,
}

impl Guests {
    /// Sets the limit.
    pub(super) fn new(most: usize) -> Self {
        Self { most, list: RefCell::default() }
    }

    /// Adds one; evicts the oldest at the limit.
    pub(super) fn welcome(&self) -> Rc<Guest> {
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
    /// Whether it is evicted; wakes the task on eviction.
    pub(super) fn leaves(&self, cx: &Context<'_>) -> bool {
        if !self.leaves.get() {
            self.task.borrow_mut().get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
        }
        self.leaves.get()
    }
}
