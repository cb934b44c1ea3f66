//! A controller with agents, over loopback.

use std::sync::Arc;
use std::time::Duration;

use fermata_controller::agent_link::{self, Journal, Line, Link};
use fermata_controller::cli::Connection;
use fermata_controller::client::{Client, ClientError};
use fermata_controller::pki::{self, Trust};
use fermata_controller::server;
use fermata_controller::wire::{Command, KeptUpdate, NewJoin, Planned, RolloutLine, Secret};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::host::{Host, Played};

/// The file of the update that all rollouts bring.
pub(crate) const UPDATE: &str =
    "id = \"qemu\"\ntitle = \"A newer QEMU\"\nkind = \"vmm\"\nnotice_s = 0\n[change]\nvmm = \"11.1\"\n";

pub(crate) struct Stage {
    pub(crate) folder: TempDir,
    pub(crate) address: String,
    pub(crate) operator: Client,
    token: String,
    pub(crate) world: Arc<Played>,
    controller: Option<JoinHandle<()>>,
    agents: Vec<(String, JoinHandle<()>)>,
    certificates: Duration,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.agents.iter().map(|(_, agent)| agent).chain(&self.controller).for_each(JoinHandle::abort);
    }
}

impl Stage {
    pub(crate) async fn new(hosts: &[(&str, &[(&str, u8)])]) -> Self {
        Self::with_certificates_for(hosts, pki::CLIENT_LIFE).await
    }

    pub(crate) async fn with_certificates_for(hosts: &[(&str, &[(&str, u8)])], certificates: Duration) -> Self {
        let folder = TempDir::new().unwrap();
        let made = server::init(folder.path()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let trust = Trust::Ca(std::fs::read_to_string(made.ca).unwrap());
        let operator = Client::new(&address, &trust, None, Some(made.admin_token.clone())).unwrap();
        let mut stage = Self {
            folder,
            address,
            operator,
            token: made.admin_token,
            world: Arc::default(),
            controller: None,
            agents: Vec::new(),
            certificates,
        };
        stage.serve(listener);
        for (name, sets) in hosts {
            stage.add_host(name, sets).await;
        }
        let count = hosts.len();
        stage.until("/v1/hosts", |all: &serde_json::Value| all.as_object().unwrap().len() == count).await;
        stage
    }

    fn serve(&mut self, listener: TcpListener) {
        let (folder, certificates) = (self.folder.path().to_owned(), self.certificates);
        self.controller = Some(tokio::spawn(async move {
            let ended = server::run_with(&folder, listener, certificates).await;
            panic!("the controller ended by itself: {ended:?}");
        }));
    }

    pub(crate) async fn kill_controller(&mut self) {
        let controller = self.controller.take().unwrap();
        controller.abort();
        assert!(controller.await.unwrap_err().is_cancelled());
    }

    pub(crate) async fn start_controller(&mut self) {
        self.serve(TcpListener::bind(&self.address).await.unwrap());
    }

    pub(crate) fn client(&self, token: Option<String>) -> Client {
        let ca = std::fs::read_to_string(self.folder.path().join("ca.pem")).unwrap();
        Client::new(&self.address, &Trust::Ca(ca), None, token).unwrap()
    }

    pub(crate) fn connection(&self) -> Connection {
        Connection {
            controller: self.address.clone(),
            ca: self.folder.path().join("ca.pem"),
            token: self.token.clone(),
            certificate: None,
        }
    }

    pub(crate) fn line(&self, host: &str) -> Line {
        Line::open(&self.folder.path().join(host), &self.address).unwrap()
    }

    pub(crate) async fn join_token(&self) -> String {
        self.operator.post::<Secret>("/v1/joins", &NewJoin::default()).await.unwrap().token
    }

    pub(crate) async fn add_host(&mut self, name: &str, sets: &[(&str, u8)]) {
        let host = name.parse().unwrap();
        let folder = self.folder.path().join(name);
        agent_link::join(&folder, &self.address, &host, &self.join_token().await).await.unwrap();
        let line = Line::open(&folder, &self.address).unwrap();
        let work = Arc::new(Host::new(name, sets, Arc::clone(&self.world)));
        let link = Link::resume(&host, Journal::new(&folder), work).await.unwrap();
        let agent = tokio::spawn(async move {
            let ended = agent_link::run(&line, link).await;
            panic!("the agent ended by itself: {ended:?}");
        });
        self.agents.push((name.to_owned(), agent));
    }

    pub(crate) fn end_agent(&mut self, host: &str) {
        self.agents.iter().filter(|(name, _)| name == host).for_each(|(_, agent)| agent.abort());
    }

    pub(crate) async fn operator_of(&self, name: &str, role: &str) -> Client {
        let new = serde_json::json!({ "name": name, "role": role });
        let token: Secret = self.operator.post("/v1/tokens", &new).await.unwrap();
        self.client(Some(token.token))
    }

    /// Runs `fermata controller ...` with this stage's connection; gives its text.
    pub(crate) async fn controller_command(&self, line: &str) -> Result<String, String> {
        #[derive(clap::Parser)]
        struct Words {
            #[command(subcommand)]
            command: fermata_controller::cli::ControllerCommand,
        }
        let ca = self.folder.path().join("ca.pem");
        let line = format!("{line} --controller {} --ca {} --token {}", self.address, ca.display(), self.token);
        let words = <Words as clap::Parser>::try_parse_from(line.split(' ')).unwrap();
        let shown = fermata_controller::cli::controller(words.command).await;
        shown.map(|shown| shown.text).map_err(|error| error.to_string())
    }

    /// Plans a rollout with a notice of so many seconds and recovery of none.
    pub(crate) async fn plan(&self, id: &str, notice: &str) -> Planned {
        let kept: KeptUpdate = self.operator.post_text("/v1/updates", UPDATE.to_owned()).await.unwrap();
        let new = serde_json::json!({
            "id": id,
            "reason": "test",
            "updates": [kept.update],
            "policy": { "recovery_s": 0, "work_s": 1 },
            "rules": { "notice": { "secs": notice.parse::<u64>().unwrap(), "nanos": 0 } }
        });
        self.operator.post("/v1/rollouts", &new).await.unwrap()
    }

    pub(crate) async fn order(&self, id: &str, verb: &str, command: Command) -> Result<serde_json::Value, ClientError> {
        self.operator.post(&format!("/v1/rollouts/{id}/do/{verb}"), &command).await
    }

    pub(crate) async fn until_phase(&self, id: &str, phase: &str) {
        self.until("/v1/rollouts", |all: &Vec<RolloutLine>| {
            all.iter().any(|line| line.id.0 == id && line.phase == phase)
        })
        .await;
    }

    /// Asks until the answer is as wanted.
    pub(crate) async fn until<T: DeserializeOwned + std::fmt::Debug>(
        &self,
        path: &str,
        wanted: impl Fn(&T) -> bool,
    ) -> T {
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        let mut seen = None;
        while tokio::time::Instant::now() < end {
            // While a controller is down there is no answer; that is part of the play.
            if let Ok(answer) = self.operator.get::<T>(path).await {
                if wanted(&answer) {
                    return answer;
                }
                seen = Some(answer);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{path} did not become as wanted; last {seen:?}; {:?}", self.world.journal());
    }
}
