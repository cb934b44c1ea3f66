//! Reports as pages: one HTML text, with its pictures (SVG) and its look (CSS) inside. No script, nothing fetched from
//! anywhere, light or dark as the reader has it, dark on white on paper. So a page can be mailed, kept beside a ticket and
//! read in ten years.
//!
//! ```text
//! fermata_maintenance::report::Report ──> maintenance() ──┐
//!                                                         ├──> String
//! fermata_controller::report::RolloutReport ──> rollout() ┘
//! ```
//!
//! Pure: what is not in the report is not on the page. A figure that nobody measured is called "not measured". Every text
//! that comes from outside (names, titles, reasons) is escaped by the template language, not by hand.

mod frame;
mod maintenance;
mod rollout;
mod spread;
mod timeline;

pub use maintenance::page as maintenance;
pub use rollout::page as rollout;

/// What stands where a figure would, if somebody had measured it.
pub(crate) const NOT_MEASURED: &str = "not measured";
