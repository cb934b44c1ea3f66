//! The program; all of it is in the library.

fn main() -> std::process::ExitCode {
    fermata_first::program::main()
}
