//! Whether this kernel was entered by our own jump, and from which boot: a word on the command line that only the jump
//! puts there.
//!
//! After a panic, a reset or a power cut the firmware starts the host with the boot loader's command line. Memory may look
//! whole then and is not to be trusted, so nothing is restored from it.

use uuid::Uuid;

const WORD: &str = "fermata.jump=";

/// A command line by which the next kernel knows that it was jumped into from `boot`.
pub(crate) fn with_word(cmdline: &str, boot: Uuid) -> String {
    let others = cmdline.split_whitespace().filter(|word| !word.starts_with(WORD));
    others.map(str::to_owned).chain([format!("{WORD}{boot}")]).collect::<Vec<_>>().join(" ")
}

/// The boot that this kernel was jumped into from.
pub(crate) fn from() -> Option<Uuid> {
    of(&std::fs::read_to_string("/proc/cmdline").ok()?)
}

fn of(cmdline: &str) -> Option<Uuid> {
    cmdline.split_whitespace().find_map(|word| word.strip_prefix(WORD)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_jump_is_on_the_command_line() {
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let once = with_word("root=/dev/vda memmap=1G!4G", first);
        let twice = with_word(&once, second);
        assert_eq!((of(&once), of(&twice), of("root=/dev/vda")), (Some(first), Some(second), None));
        assert_eq!(twice.matches(WORD).count(), 1);
        assert!(twice.starts_with("root=/dev/vda memmap=1G!4G "));
    }
}
