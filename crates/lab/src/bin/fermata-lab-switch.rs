//! The switch between the hosts of a lab, as a process of its own: `fermata-lab-switch SOCKETS HOST...`.

use std::path::PathBuf;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let sockets: PathBuf = words.next().context("usage: fermata-lab-switch SOCKETS HOST...")?.into();
    let hosts: Vec<String> = words.collect();
    fermata_lab::network::run(&sockets, &hosts).context("switch between hosts")
}
