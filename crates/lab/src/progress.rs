//! Progress of long work, on stderr: what is done, since when, and how long it usually takes.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::paths;

/// A step of long work; its end is told when it is dropped.
#[derive(Debug)]
pub struct Step {
    name: String,
    start: Instant,
}

impl Step {
    /// Tells that a step begins, and how long it took the last time on this machine.
    #[must_use]
    pub fn begin(name: &str) -> Self {
        match forecast(name) {
            Some(time) => eprintln!("lab: {name} (last time {:.1} s)", time.as_secs_f32()),
            None => eprintln!("lab: {name}"),
        }
        Self { name: name.to_owned(), start: Instant::now() }
    }

    /// Tells that the step is done, and remembers how long it took.
    pub fn done(self) {
        let took = self.start.elapsed();
        eprintln!("lab: {} done in {:.1} s", self.name, took.as_secs_f32());
        // Only a forecast: a machine that cannot remember it loses nothing else.
        let _ = fs::create_dir_all(paths::lab().join("times"));
        let _ = fs::write(file(&self.name), took.as_millis().to_string());
    }
}

fn file(name: &str) -> std::path::PathBuf {
    paths::lab().join("times").join(name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-"))
}

fn forecast(name: &str) -> Option<Duration> {
    fs::read_to_string(file(name)).ok()?.trim().parse().ok().map(Duration::from_millis)
}
