//! Shared types: item, attempt, batch, epoch, time limits, and answers.

mod batch;
mod epoch;
mod item;
mod purchase;
pub mod times;
mod view;
mod window;

pub use batch::{Attempt, Batch};
pub use epoch::epoch_after;
pub use item::Item;
pub use purchase::{OrderStatus, Purchase};
pub use view::{State, View};
pub use window::Window;
