//! `fermata agent`, with or without a controller, and `fermata standalone`: both in one process.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use fermata_agent::config::{self, Config};
use fermata_controller::client::Client;
use fermata_controller::pki::Trust;
use fermata_controller::server::{self, ADMIN_TOKEN};
use fermata_controller::wire::{NewJoin, Secret};
use std::io::Write as _;
use tokio::net::TcpListener;

/// `fermata agent`.
#[derive(Debug, Args)]
pub(crate) struct Agent {
    /// Its configuration.
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// The controller to take orders from, as HOST:PORT; what the configuration says when absent.
    #[arg(long, env = "FERMATA_CONTROLLER")]
    controller: Option<String>,
    /// The token to join with, the first time.
    #[arg(long, env = "FERMATA_JOIN_TOKEN", hide_env_values = true)]
    join: Option<String>,
}

impl Agent {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut config = Config::read(&self.config)?;
        config.fleet.controller = self.controller.or(config.fleet.controller);
        config.fleet.token = self.join.or(config.fleet.token);
        fermata_agent::run_with(config).await.context("the agent stopped")
    }
}

/// `fermata standalone`.
#[derive(Debug, Args)]
pub(crate) struct Standalone {
    /// The agent's configuration; VMMs of this host are looked for when there is none.
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Where the controller listens.
    #[arg(long, default_value = "127.0.0.1:7440")]
    listen: String,
}

impl Standalone {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut config =
            if self.config.exists() { Config::read(&self.config)? } else { Config::of_this_host().await? };
        let folder = config.state_dir.join("controller");
        if !folder.join("ca.pem").exists() {
            let made = server::init(&folder).await?;
            keep(&folder.join(ADMIN_TOKEN), &made.admin_token)?;
        }
        let listener =
            TcpListener::bind(&self.listen).await.with_context(|| format!("listening on {}", self.listen))?;
        let address = listener.local_addr().context("the address listened on")?.to_string();
        // One runtime: the controller runs beside the agent, and either one's end is the end of both.
        let controller = async { server::run_on(&folder, listener).await.context("the controller stopped") };
        let agent = async {
            config.fleet.token = Some(token(&folder, &address).await?);
            config.fleet.controller = Some(address.clone());
            fermata_agent::run_with(config).await.context("the agent stopped")
        };
        tokio::select! {
            ended = controller => ended,
            ended = agent => ended,
        }
    }
}

/// A token for this host, from its own controller.
async fn token(folder: &Path, address: &str) -> anyhow::Result<String> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).with_context(|| {
            format!("{}: it is made with the controller; remove {} to begin anew", path.display(), folder.display())
        })
    };
    let admin = read(ADMIN_TOKEN)?.trim().to_owned();
    let client = Client::new(address, &Trust::Ca(read("ca.pem")?), None, Some(admin))?;
    Ok(client.post::<Secret>("/v1/joins", &NewJoin { seconds: Some(600), host: None }).await?.token)
}

fn keep(path: &Path, secret: &str) -> anyhow::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{secret}").with_context(|| format!("write {}", path.display()))
}
