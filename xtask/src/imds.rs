//! The metadata service: its benchmark, its fuzzing, and the public clients that its tests run.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Debian packages that are unpacked, not installed: cloud-init and the guest agent would act on this machine, and nginx
/// would serve on it.
const PACKAGES: [&str; 4] = ["resource-agents", "cloud-init", "waagent", "nginx"];
/// Clients, and what cloud-init's data source imports.
const PYTHON: [&str; 10] = [
    "opentelemetry-resource-detector-azure",
    "azure-identity",
    "configobj",
    "jinja2",
    "jsonpatch",
    "jsonschema",
    "oauthlib",
    "pyserial",
    "pyyaml",
    "distro",
];
const NODE: [&str; 2] = ["@opentelemetry/resource-detector-azure", "@azure/identity"];
/// Programs that tests of the wire and of clients need, with their packages.
const PROGRAMS: [(&str, &str); 9] = [
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("curl", "curl"),
    ("jq", "jq"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("/usr/bin/python3", "python3"),
    ("dpkg-deb", "dpkg"),
];

/// Requests per second, latency and memory, beside nginx; writes `target/bench/imds.json`.
pub(crate) fn bench(seconds: u64) -> Result<()> {
    if !Path::new("target/clients/root/usr/sbin/nginx").exists() {
        unpack()?;
    }
    run("cargo", &["build", "--quiet", "--release", "--locked", "-p", "fermata-imds", "--bins"])?;
    run("target/release/imds-bench", &["--seconds", &seconds.to_string()])
}

/// Mutated requests, queries and bodies against the guest-facing parser.
pub(crate) fn fuzz(inputs: u64, seed: u64) -> Result<()> {
    run("cargo", &["build", "--quiet", "--release", "--locked", "-p", "fermata-imds", "--bins"])?;
    run("target/release/imds-fuzz", &["--inputs", &inputs.to_string(), "--seed", &seed.to_string()])
}

/// Unpacks the public clients into `target/clients` and runs the tests that need them and the wire's.
pub(crate) fn clients() -> Result<()> {
    install_programs()?;
    if !Path::new("target/clients/root/usr/lib/ocf").exists() {
        unpack()?;
    }
    if !Path::new("target/clients/venv/bin/python").exists() {
        // Debian keeps venv in a package of its own.
        if run("/usr/bin/python3", &["-m", "venv", "target/clients/venv"]).is_err() {
            apt(&["install", "-y", "--no-install-recommends", "python3-venv"])?;
            run("/usr/bin/python3", &["-m", "venv", "--clear", "target/clients/venv"])?;
        }
        let mut words = vec!["-q", "install"];
        words.extend(PYTHON);
        run("target/clients/venv/bin/pip", &words)?;
    }
    if !Path::new("target/clients/node/node_modules").exists() {
        let mut words = vec!["install", "--silent", "--no-fund", "--no-audit", "--prefix", "target/clients/node"];
        words.extend(NODE);
        run("npm", &words)?;
    }
    let tests = ["--features", "system-tests", "--test", "wire", "--test", "book", "--test", "clients"];
    run("cargo", &[["test", "--locked", "-p", "fermata-imds"].as_slice(), &tests].concat())
}

fn install_programs() -> Result<()> {
    let folders = || ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"].into_iter().map(Path::new);
    let there = |program: &str| folders().any(|folder| folder.join(program).exists());
    let missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !there(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut words = vec!["install", "-y", "--no-install-recommends"];
    words.extend(missing);
    apt(&words)
}

fn unpack() -> Result<()> {
    for folder in ["target/clients/deb", "target/clients/root"] {
        std::fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
    }
    let download = || {
        let status =
            Command::new("apt-get").arg("-q").arg("download").args(PACKAGES).current_dir("target/clients/deb").status();
        status.is_ok_and(|status| status.success())
    };
    if !download() {
        apt(&["update"])?;
        ensure!(download(), "apt-get cannot download {}; see above", PACKAGES.join(", "));
    }
    for entry in std::fs::read_dir("target/clients/deb").context("read target/clients/deb")? {
        let path = entry?.path();
        run("dpkg-deb", &["-x", &path.to_string_lossy(), "target/clients/root"])?;
    }
    Ok(())
}

fn apt(words: &[&str]) -> Result<()> {
    let status = Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").arg("-q").args(words).status();
    ensure!(status.context("start apt-get")?.success(), "run as root: apt-get {}", words.join(" "));
    Ok(())
}

fn run(program: &str, words: &[&str]) -> Result<()> {
    let status = Command::new(program).args(words).status().with_context(|| format!("start {program}"))?;
    ensure!(status.success(), "{program} failed; see above");
    Ok(())
}
