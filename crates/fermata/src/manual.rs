//! What is generated from the definition of the command line: completions and manual pages.

use std::path::Path;

use anyhow::Context as _;
use clap_complete::Shell;

/// Prints the completions for `shell`.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut crate::command(), "fermata", &mut text);
    crate::output::text(&text)
}

/// Writes `fermata.1`, `fermata-vm.1`, `fermata-vm-create.1` and so on: one page per command that people use.
pub(crate) fn pages(folder: &Path) -> anyhow::Result<()> {
    clap_mangen::generate_to(crate::command(), folder)
        .with_context(|| format!("write manual pages to {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use clap_complete::Shell;

    #[test]
    fn every_command_for_people_has_a_page_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        super::pages(folder.path()).unwrap();
        let there = |name: &str| folder.path().join(name).is_file();
        for page in ["fermata.1", "fermata-vm-create.1", "fermata-rollout-plan.1", "fermata-maintenance-show.1"] {
            assert!(there(page), "{page}");
        }
        assert!(!there("fermata-dead-man.1") && !there("fermata-vmm-exec.1"), "started by machines only");
    }

    #[test]
    fn completions_know_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut crate::command(), "fermata", &mut text);
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains("rollout") && text.contains("give-up"), "{shell}");
        }
    }
}
