//! The suite that every [`Store`](crate::Store) must pass.
//!
//! [`run`] takes a function that makes an empty store and panics with what a person needs when a promise is broken. It
//! has two parts: promises one by one, and random histories compared with a reference that is written independently of
//! [`crate::engine`] (a plain list of everything that ever happened).
//!
//! An implementation whose leases follow a clock of its own passes [`Options::virtual_time`] = false.

mod promises;
mod random;
mod reference;

use std::sync::Arc;

use crate::Store;

/// What an implementation can be asked.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Leases end by the time that comes in, not by a clock of the store.
    pub virtual_time: bool,
    /// How many random histories are tried.
    pub histories: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { virtual_time: true, histories: 64 }
    }
}

/// Makes an empty store.
pub trait Factory {
    /// An empty store; what it needs to live is kept inside of it or leaked until the process ends.
    fn make(&self) -> impl Future<Output = Arc<dyn Store>>;
}

/// Runs the whole suite.
///
/// # Panics
/// When the implementation breaks a promise, or when no runtime can be made.
pub fn run(factory: &impl Factory, options: Options) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime of one thread needs nothing that could be missing");
    runtime.block_on(promises::all(factory, options));
    random::all(&runtime, factory, options);
}
