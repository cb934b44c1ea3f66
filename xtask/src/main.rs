//! Development commands, run as `cargo xtask COMMAND`. Thin: the work is done by `fermata-lab` and by cargo.

mod checks;
mod demo;
mod fleet;
mod imds;
mod lab;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use fermata_lab::{
    kexecs,
    machine::Acceleration,
    swaps::{
        bench,
        faults::{self, Fault},
        plan,
    },
};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Development commands of Fermata")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Virtual hosts to work with by hand.
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// A fleet of virtual hosts whose QEMU and kernel are replaced under their VMs, and what the VMs felt.
    Demo {
        /// How many hosts are updated: 2 to 4.
        #[arg(long, default_value_t = 2)]
        hosts: usize,
        /// Leave the hosts running afterwards.
        #[arg(long)]
        keep: bool,
        /// How the hosts run; what this machine can when absent.
        #[arg(long)]
        accel: Option<Accel>,
    },
    /// Build the host image and the guests' disk, if they are not there yet.
    Image,
    /// Make the Debian package: `target/package/fermata_VERSION-1_ARCH.deb`.
    Package {
        /// The `fermata` to package, instead of building the optimised one.
        #[arg(long)]
        binary: Option<PathBuf>,
        /// The package's version.
        #[arg(long, default_value = fermata_lab::package::VERSION)]
        version: String,
    },
    /// Run all tests, with the everyday ones of `test-hosts`; installs what they need first.
    Test {
        /// Words for `cargo test`, after `--`.
        #[arg(last = true)]
        words: Vec<String>,
    },
    /// Run the tests of hand overs between two real VMMs on this machine, and of both firmwares.
    TestVmm,
    /// Run all tests that bring virtual hosts up, or those named; on a machine with nothing else to do.
    TestHosts {
        /// Files of `crates/lab/tests`, without `.rs`.
        names: Vec<String>,
    },
    /// Measure something, beside a peer or a floor.
    #[command(subcommand)]
    Bench(Bench),
    /// Do the worst at every step of something.
    #[command(subcommand)]
    Faults(Faults),
    /// Feed a parser that faces guests with mutated input.
    Fuzz {
        /// Which.
        what: Part,
        /// How many inputs.
        #[arg(long, default_value_t = 10_000_000)]
        inputs: u64,
        /// Where the randomness begins.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Run rollouts in a hostile world: messages lost, doubled and late, crashes, partitions, wrong clocks.
    Sim {
        /// How many campaigns.
        #[arg(long, default_value_t = 10_000)]
        campaigns: u64,
        /// The first seed; a failure names the seed that replays it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Run public clients of the metadata service, and its tests with real frames.
    Clients,
    /// Check licences, bans and sources of dependencies.
    Deny,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Time, memory and quality of plans for fleets of up to 100,000 hosts.
    Planner,
    /// The metadata service, beside nginx: `target/bench/imds.json`.
    Imds {
        /// Seconds per run.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// VMMs that change under running VMs, beside the same by bare QMP: `target/bench/swap.json`.
    Swap {
        /// Two sizes, few swaps: about ten minutes.
        #[arg(long)]
        quick: bool,
        /// Swaps of every size.
        #[arg(long)]
        swaps: Option<usize>,
        /// Swaps of the first size, in a row, with what the host holds counted before and after.
        #[arg(long)]
        in_a_row: Option<usize>,
        /// How many VMs at once, and one by one; 0 for none.
        #[arg(long)]
        many: Option<usize>,
        /// Memory in MiB and processors of VMs that are measured one after the other, such as `256x1,2048x2`.
        #[arg(long, value_delimiter = ',')]
        sizes: Vec<String>,
    },
    /// Kernels that change under running VMs, beside the floor and beside a restart by hand: `target/bench/kexec.json`.
    Kexec {
        /// One and four VMs, few changes: about half an hour.
        #[arg(long)]
        quick: bool,
        /// How many VMs of how many MiB together on the host, one company after the other, such as `1x256,8x256`.
        #[arg(long, value_delimiter = ',')]
        companies: Vec<String>,
        /// Changes of the kernel with each company.
        #[arg(long)]
        changes: Option<usize>,
        /// Floors of each kernel; without any, there is no ratio.
        #[arg(long)]
        floors: Option<usize>,
    },
}

/// How virtual hosts run.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Accel {
    /// By the CPU's virtualisation, nested.
    Kvm,
    /// Emulated.
    Tcg,
}

#[derive(Debug, Subcommand)]
enum Faults {
    /// Change the VMM of a VM with a fault at every step: `target/bench/faults-swap.json`.
    Swap {
        /// The set that is also a test: nine cases around the pause.
        #[arg(long)]
        short: bool,
        /// One step, such as "hand over".
        #[arg(long)]
        step: Option<String>,
        /// One fault, as the table names it, such as "power cut".
        #[arg(long)]
        fault: Option<String>,
        /// Leave out what an earlier run found whole.
        #[arg(long = "continue")]
        go_on: bool,
        /// No case begins after this many minutes.
        #[arg(long, default_value_t = 120)]
        minutes: u64,
    },
    /// Change the kernel under two VMs with a fault at every step: `target/bench/faults-kexec.json`.
    Kexec {
        /// One step, such as "jump".
        #[arg(long)]
        step: Option<String>,
        /// One fault, as the table names it, such as "a disk is missing".
        #[arg(long)]
        fault: Option<String>,
        /// Leave out what an earlier run found whole.
        #[arg(long = "continue")]
        go_on: bool,
        /// No case begins after this many minutes.
        #[arg(long, default_value_t = 120)]
        minutes: u64,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Part {
    Imds,
}

fn main() -> ExitCode {
    // Virtual hosts are processes of their own: ended by Ctrl-C only if somebody passes it on.
    let passed_on = ctrlc::set_handler(|| {
        eprintln!("interrupted; taking down what this command started");
        if let Err(error) = fermata_lab::Lab::down_all_of_this_process() {
            eprintln!("error: {error:#}; `cargo xtask lab down --all` tries again");
        }
        // 128 + SIGINT, as shells have it.
        std::process::exit(130);
    });
    if let Err(error) = passed_on {
        eprintln!("warning: Ctrl-C will not take virtual hosts down: {error}");
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of reasons for a person; a backtrace of this program tells nobody anything.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Arguments::parse().command {
        Task::Lab(command) => lab::run(command),
        Task::Demo { hosts, keep, accel } => {
            match accel {
                None => {}
                Some(Accel::Kvm) => Acceleration::Kvm.insist()?,
                Some(Accel::Tcg) => Acceleration::Tcg.insist()?,
            }
            demo::run(hosts, keep)
        }
        Task::Image => checks::image(true),
        Task::Package { binary, version } => checks::package(binary, &version),
        Task::TestVmm => checks::test_vmm(),
        Task::TestHosts { names } => checks::test_hosts(&names),
        Task::Test { words } => {
            checks::test(&words)?;
            // Words choose among the workspace's tests; the clients are part of everything.
            if words.is_empty() { imds::clients() } else { Ok(()) }
        }
        Task::Bench(Bench::Imds { seconds }) => imds::bench(seconds),
        Task::Bench(Bench::Swap { quick, swaps, in_a_row, many, sizes }) => {
            bench::run(&plan::plan(quick, &plan::Wishes { swaps, in_a_row, many, sizes })?)
        }
        Task::Bench(Bench::Kexec { quick, companies, changes, floors }) => {
            let plan = if quick { kexecs::bench::Plan::quick() } else { kexecs::bench::Plan::full() };
            kexecs::bench::run(&plan.wished(&companies, changes, floors)?)
        }
        Task::Faults(Faults::Swap { short, step, fault, go_on, minutes }) => {
            let (steps, all) =
                if short { (&faults::SHORT[..], &Fault::SHORT[..]) } else { (&faults::STEPS[..], &Fault::ALL[..]) };
            let one = step.as_deref().map(|step| [step]);
            let wanted = named(all, fault.as_deref())?;
            faults::run(one.as_ref().map_or(steps, |one| one), &wanted, go_on, Duration::from_secs(minutes * 60))
        }
        Task::Faults(Faults::Kexec { step, fault, go_on, minutes }) => {
            let wanted = named(&kexecs::faults::Fault::ALL, fault.as_deref())?;
            kexecs::faults::run(&wanted, step.as_deref(), go_on, Duration::from_secs(minutes * 60))
        }
        Task::Bench(Bench::Planner) => fleet::bench(),
        Task::Sim { campaigns, seed } => fleet::sim(campaigns, seed),
        Task::Fuzz { what: Part::Imds, inputs, seed } => imds::fuzz(inputs, seed),
        Task::Clients => imds::clients(),
        Task::Deny => checks::deny(),
    }
}

/// All faults, or the one of that name.
fn named<F: Copy + std::fmt::Display>(all: &[F], name: Option<&str>) -> anyhow::Result<Vec<F>> {
    let wanted: Vec<F> = all.iter().copied().filter(|one| name.is_none_or(|name| name == one.to_string())).collect();
    let names: Vec<String> = all.iter().map(|one| format!("{:?}", one.to_string())).collect();
    anyhow::ensure!(!wanted.is_empty(), "no fault has this name; use one of {}", names.join(", "));
    Ok(wanted)
}
