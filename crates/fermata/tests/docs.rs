//! What the README and the book show is what the product takes: commands, files, and what can be asked for without a host.
//!
//! Every command line that begins with `fermata`, in blocks and between words, goes through the definition that parses the program's own.
//! Files in blocks go through the parsers of the product. What only asks is run against a real agent and controller in one process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::error::ErrorKind;
use fermata_agent::config::Config;
use fermata_maintenance::update::Update;
use fermata_model::VmSpec;
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A piece of code in a page.
struct Piece {
    place: String,
    /// Of a block the language, empty when it names none; `None` for code between words.
    block: Option<String>,
    text: String,
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn pages() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(workspace().join("docs/src")).unwrap();
    let mut pages: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    pages.push(workspace().join("README.md"));
    pages.push(workspace().join("docs/SPECIFICATION.md"));
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    pages
}

fn pieces() -> Vec<Piece> {
    let mut all = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        let place = |offset: usize| format!("{name}:{}", text[..offset].lines().count());
        let mut block = None;
        for (event, range) in Parser::new_ext(&text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::CodeBlock(kind)) => {
                    let language = match kind {
                        CodeBlockKind::Fenced(words) => words.split(',').next().unwrap_or_default().to_owned(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    block = Some(Piece { place: place(range.start + 1), block: Some(language), text: String::new() });
                }
                Event::Text(words) => {
                    if let Some(block) = &mut block {
                        block.text += &words;
                    }
                }
                Event::End(TagEnd::CodeBlock) => all.extend(block.take()),
                Event::Code(words) => {
                    all.push(Piece { place: place(range.start + 1), block: None, text: words.into_string() });
                }
                _ => {}
            }
        }
    }
    all
}

/// The command lines of a block: of a session those after a prompt, of a script all. Lines that go on are joined.
fn lines(piece: &Piece) -> Vec<String> {
    let joined = piece.text.replace("\\\n", " ");
    let prompt = |line: &str| line.strip_prefix("$ ").or_else(|| line.strip_prefix("# ")).map(str::to_owned);
    match piece.block.as_deref() {
        Some("console") => joined.lines().filter_map(prompt).collect(),
        Some("sh" | "bash" | "") => joined.lines().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// The words of every simple command of a line that runs `fermata`.
fn commands(line: &str) -> Vec<Vec<String>> {
    let words = shlex::split(line).unwrap_or_else(|| panic!("no shell takes `{line}`"));
    let ends = ["|", "||", "&&", ";", "&", ">", "2>", "<"];
    let simple = words.split(|word| ends.contains(&word.as_str()));
    let before =
        |word: &&String| word.as_str() == "sudo" || word.split_once('=').is_some_and(|(name, _)| is_variable(name));
    let bare = simple.map(|words| words.iter().skip_while(before).cloned().collect::<Vec<_>>());
    bare.filter(|words| words.first().is_some_and(|word| word == "fermata")).collect()
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// A word for something, such as `ROLLOUT`, as a name that something could have.
fn named(word: &str) -> String {
    if is_variable(word) { word.to_lowercase() } else { word.to_owned() }
}

/// Asks the definition of the command line; `whole` says that nothing may be missing.
fn refused(words: &[String], whole: bool) -> Option<String> {
    let error = fermata::command().try_get_matches_from(words.iter().map(|word| named(word))).err()?;
    let fine = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        ErrorKind::MissingRequiredArgument | ErrorKind::MissingSubcommand => !whole,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => !whole,
        _ => false,
    };
    (!fine).then(|| error.to_string())
}

#[test]
fn every_command_that_is_shown_is_one_the_program_takes() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for piece in pieces() {
        let found: Vec<Vec<String>> = match &piece.block {
            Some(_) => {
                lines(&piece).iter().filter(|line| line.contains("fermata ")).flat_map(|line| commands(line)).collect()
            }
            // Between words a command may be named without all it needs, and several with commas, which is no command line.
            None if piece.text.starts_with("fermata ") && !piece.text.contains([',', '|']) => commands(&piece.text),
            None => Vec::new(),
        };
        for words in found {
            seen += 1;
            let said = refused(&words, piece.block.is_some());
            wrong.extend(said.map(|said| format!("{}: {}\n{said}", piece.place, words.join(" "))));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 60, "only {seen} commands were found: is the search broken?");
}

#[test]
fn a_command_that_the_program_does_not_take_is_found() {
    let words = |line: &str| commands(line).remove(0);
    assert!(refused(&words("fermata vm create --start web.toml | cat"), true).is_none());
    assert!(refused(&words("FERMATA_CA=ca.pem fermata fleet list"), true).is_none());
    assert!(refused(&words("fermata vm crate web.toml"), false).is_some());
    assert!(refused(&words("fermata vm create --begin web.toml"), false).is_some());
    assert!(
        refused(&words("fermata vm create"), true).is_some() && refused(&words("fermata vm create"), false).is_none()
    );
}

#[test]
fn every_file_that_is_shown_is_one_the_program_takes() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for piece in pieces() {
        let (text, place) = (&piece.text, &piece.place);
        match piece.block.as_deref() {
            Some("toml") => {
                let has = |key: &str| text.lines().any(|line| line.starts_with(key));
                if has("kind =") {
                    Update::from_toml(text).unwrap_or_else(|error| panic!("{place}: no update file: {error}"));
                } else if has("vcpus =") {
                    VmSpec::from_toml(text).unwrap_or_else(|error| panic!("{place}: no specification: {error}"));
                } else {
                    // A part of the agent's configuration; a VMM is the one thing it cannot do without.
                    let vmm = if text.contains("[vmm.") {
                        ""
                    } else {
                        "\n[vmm.\"10.0\"]\nbinary = \"/usr/bin/qemu-system-x86_64\"\n"
                    };
                    let path = folder.path().join("agent.toml");
                    std::fs::write(&path, format!("{text}{vmm}")).unwrap();
                    Config::read(&path).unwrap_or_else(|error| panic!("{place}: no configuration: {error}"));
                }
            }
            Some("json") => {
                let value: serde_json::Value =
                    serde_json::from_str(text).unwrap_or_else(|error| panic!("{place}: {error}"));
                if value.get("gates").is_some() {
                    serde_json::from_value::<fermata_controller::rollout::Rules>(value)
                        .unwrap_or_else(|error| panic!("{place}: no rules: {error}"));
                }
            }
            _ => continue,
        }
        seen += 1;
    }
    assert!(seen >= 6, "only {seen} files were found: is the search broken?");
    let packaged = workspace().join("packaging/tree/etc/fermata/agent.toml");
    Config::read(&packaged).expect("the configuration that the package brings");
}

/// What only asks, and can be asked of a host without VMs and metadata service.
const ASKS: [&str; 9] = [
    "vm list",
    "host show",
    "maintenance list",
    "fleet list",
    "fleet check",
    "set list",
    "rollout list",
    "completions",
    "controller token",
];

/// `fermata standalone` on the loopback, ended when dropped.
struct Standalone {
    process: Child,
    folder: tempfile::TempDir,
    address: String,
}

impl Standalone {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        // No VMM of this machine is asked for anything.
        let config = format!(
            "state_dir = \"{}\"\nrun_dir = \"{}\"\nlauncher = \"{}\"\n[vmm.\"10.0\"]\nbinary = \"/bin/true\"\n",
            at("state"),
            at("run"),
            env!("CARGO_BIN_EXE_fermata")
        );
        std::fs::write(at("agent.toml"), config).unwrap();
        // A port that is free now; nobody else is told of it.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let log = std::fs::File::create(at("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_fermata"));
        command.args(["standalone", "--config", &at("agent.toml"), "--listen", &address]);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { process, folder, address }
    }

    fn run(&self, words: &[String]) -> std::process::Output {
        let at = |name: &str| OsString::from(self.folder.path().join(name));
        let mut command = Command::new(env!("CARGO_BIN_EXE_fermata"));
        command.args(&words[1..]).env("FERMATA_SOCKET", at("run/agent.sock")).env("FERMATA_CONTROLLER", &self.address);
        command.env("FERMATA_CA", at("state/controller/ca.pem")).output().unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "that another process is ready can only be asked for")]
fn what_only_asks_is_answered_by_a_real_agent_and_controller() {
    let standalone = Standalone::start();
    let until = Instant::now() + Duration::from_secs(60);
    let fleet: Vec<String> = ["fermata", "fleet", "list"].map(str::to_owned).to_vec();
    // The host joins its own controller: whoever sees it there knows that both answer.
    while standalone.run(&fleet).stdout.trim_ascii().is_empty() {
        assert!(Instant::now() < until, "not ready within a minute:\n{}", standalone.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut asked: Vec<Vec<String>> = Vec::new();
    for piece in pieces().iter().filter(|piece| piece.block.is_some()) {
        let lines = lines(piece);
        for words in lines.iter().filter(|line| line.contains("fermata ")).flat_map(|line| commands(line)) {
            let rest = words[1..].iter().filter(|word| *word != "--json").cloned().collect::<Vec<_>>().join(" ");
            if ASKS.iter().any(|asks| rest.starts_with(asks)) && !asked.contains(&words) {
                asked.push(words);
            }
        }
    }
    for words in &asked {
        let output = standalone.run(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}\n{}", words.join(" "), standalone.log());
    }
    assert!(asked.len() >= 5, "only {} commands were found: {asked:?}", asked.len());
}

#[test]
fn every_page_is_in_the_book_and_every_link_between_pages_leads_somewhere() {
    let folder = workspace().join("docs/src");
    let summary = std::fs::read_to_string(folder.join("SUMMARY.md")).unwrap();
    for page in pages() {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        let inside = page.starts_with(&folder) && name != "SUMMARY.md";
        assert!(!inside || summary.contains(&format!("({name})")), "{name} is not in SUMMARY.md");
        let text = std::fs::read_to_string(&page).unwrap();
        for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
            let (Event::Start(Tag::Link { dest_url: to, .. }) | Event::Start(Tag::Image { dest_url: to, .. })) = event
            else {
                continue;
            };
            let path = to.split('#').next().unwrap_or_default();
            let there = path.is_empty() || path.contains("://") || page.with_file_name(path).exists();
            assert!(there, "{name}: {to} leads nowhere");
        }
    }
}
