//! The book of cases of `cargo xtask faults`: what was tried, what came of it, kept from run to run.
//!
//! It is written anew after every case, so a run that is cut short loses nothing, and a later one can go on where it ended.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{host::Host, paths};

/// One case, by where and what.
pub(crate) trait Case: Serialize + DeserializeOwned {
    /// The step, and the fault as people call it.
    fn key(&self) -> (String, String);
    /// What is not as it must be.
    fn broken(&self) -> &[String];
    /// Whether the fault had something to hit.
    fn applied(&self) -> bool {
        true
    }
}

/// All cases so far.
#[derive(Debug)]
pub(crate) struct Book<C> {
    what: &'static str,
    file: PathBuf,
    cases: Vec<C>,
}

impl<C: Case> Book<C> {
    /// `what` is changed under faults: the file is `target/bench/faults-WHAT.json`. With `go_on` it keeps the cases of earlier runs that
    /// were whole.
    ///
    /// # Errors
    /// The file of earlier runs cannot be read, or the folder not be made.
    pub(crate) fn open(what: &'static str, go_on: bool) -> Result<Self> {
        let folder = paths::workspace().join("target/bench");
        fs::create_dir_all(&folder)?;
        let file = folder.join(format!("faults-{what}.json"));
        let mut cases = Vec::new();
        if go_on && file.exists() {
            let text = fs::read(&file)?;
            let mut known: Value = serde_json::from_slice(&text).with_context(|| format!("read {}", file.display()))?;
            let known = serde_json::from_value::<Vec<C>>(known["cases"].take());
            cases =
                known.with_context(|| format!("{} is of another version; run without --continue", file.display()))?;
            cases.retain(|case| case.broken().is_empty());
        }
        Ok(Self { what, file, cases })
    }

    /// Whether a case was tried and was whole.
    pub(crate) fn has(&self, step: &str, fault: &str) -> bool {
        self.cases.iter().any(|case| case.key() == (step.to_owned(), fault.to_owned()))
    }

    /// Takes a case in and writes the file. What is seen on the host after a broken one is kept beside it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn add(&mut self, host: &Host, began: Duration, case: C) -> Result<()> {
        let (step, fault) = case.key();
        let verdict = match (case.broken().is_empty(), case.applied()) {
            (false, _) => case.broken().join("; "),
            (true, true) => "whole".to_owned(),
            (true, false) => "nothing to hit".to_owned(),
        };
        eprintln!("[{:>5.0} s] {fault} at {step}: {verdict}", began.as_secs_f64());
        if !case.broken().is_empty() {
            let folder = self.file.with_extension("");
            let seen = folder.join(format!("{fault} at {step}.log").replace(' ', "-"));
            fs::create_dir_all(&folder)?;
            fs::write(&seen, host.evidence())?;
            eprintln!("          what is seen on the host: {}", seen.display());
        }
        self.cases.push(case);
        self.write(None)
    }

    /// All cases.
    pub(crate) fn into_cases(self) -> Vec<C> {
        self.cases
    }

    fn broken(&self) -> usize {
        self.cases.iter().filter(|case| !case.broken().is_empty()).count()
    }

    fn write(&self, cut: Option<&str>) -> Result<()> {
        let hit = self.cases.iter().filter(|case| case.applied()).count();
        let summary = json!({"cases": self.cases.len(), "hit": hit, "broken": self.broken(), "cut_short": cut});
        // Whoever ends this run now shall find the former file or this one.
        let part = self.file.with_extension("part");
        fs::write(&part, serde_json::to_vec_pretty(&json!({"cases": self.cases, "summary": summary}))?)?;
        Ok(fs::rename(&part, &self.file)?)
    }

    /// Prints the table. `cut`: why it ended early, if it did.
    ///
    /// # Errors
    /// A case was broken, or the run was cut short.
    pub(crate) fn close(self, table: fn(&[C]) -> String, cut: Option<String>) -> Result<()> {
        self.write(cut.as_deref())?;
        let (count, broken) = (self.cases.len(), self.broken());
        println!("{}\n{count} cases, {broken} broken; written to {}", table(&self.cases), self.file.display());
        match (broken, cut) {
            (0, None) => Ok(()),
            (0, Some(cut)) => {
                bail!("cut short: {cut}; `cargo xtask faults {} --continue` goes on", self.what)
            }
            (broken, _) => bail!("{broken} cases broken; see the table"),
        }
    }
}
