//! Stories of rollouts, told to the core alone.

mod property;
mod stories;
mod world;
