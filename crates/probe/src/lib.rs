//! What a guest feels while its host is changed.
//!
//! The probe is the main program of the lab's guests. It samples its clocks every millisecond, keeps memory and a disk busy
//! with content it can check, and sends heartbeats; it tells what it saw as JSON, one value a line, on its console and to
//! anyone who asks on its control port. This library holds the types of those reports, so that a test reads them as data.
//!
//! | module | what it is for |
//! |---|---|
//! | [`report`] | the reports, requests and answers |
//! | [`gap`] | the largest gaps between samples (pure) |
//! | [`clock`] | all clocks read at one instant |
//! | [`memory`] | the memory witness |
//! | [`disk`] | the disk witness and its checker |
//! | [`beat`] | heartbeats: the sender in the guest, sequence bookkeeping (pure) |
//! | [`sink`] | the receiver of heartbeats |
//! | [`control`] | the control port: server and client |
//! | [`guest`] | the probe inside a guest: configuration and threads |
//! | [`offset`] | a guest's clocks against those of the machine that asks |
//! | [`bare`] | the floor of a VMM swap: by bare QMP commands, on a host |
//! | [`floor`] | the floor of a change of kernels: to the first instruction of an empty `/init` |
//! | [`metadata`] | the metadata service, asked from inside a guest |
//! | [`inside`] | a command in a guest, run from its host |

pub mod bare;
pub mod beat;
pub mod clock;
pub mod control;
pub mod disk;
pub mod floor;
pub mod gap;
pub mod guest;
pub mod inside;
pub mod memory;
pub mod metadata;
pub mod offset;
pub mod report;
pub mod sink;

/// Port of the probe's control connection.
pub const CONTROL_PORT: u16 = 7072;
/// Port (TCP and UDP) on which a sink takes heartbeats.
pub const BEAT_PORT: u16 = 7070;
/// Port of the sink's control connection.
pub const SINK_CONTROL_PORT: u16 = 7071;
/// Leads every line of the probe on a console, which it shares with the kernel.
pub const CONSOLE_PREFIX: &str = "PROBE ";
