use super::*;

const LIMIT: Duration = Duration::from_secs(60);

fn info(version: &str, machines: &[&str], cpus: &[&str]) -> VmmInfo {
    VmmInfo {
        binary: "/qemu".into(),
        version: version.parse().unwrap(),
        full_version: version.to_owned(),
        machines: machines.iter().map(|name| name.parse().unwrap()).collect(),
        devices: BTreeSet::new(),
        cpus: cpus.iter().map(|&name| name.to_owned()).collect(),
        cpr_transfer: true,
        cpr_reboot: true,
    }
}

#[test]
fn defaults_are_what_every_vmm_of_the_host_can_do() {
    let old = info("10.0", &["pc-q35-9.2", "pc-q35-10.0"], &["EPYC-v4", "EPYC-v1", "qemu64-v1"]);
    let new = info("11.1", &["pc-q35-9.2", "pc-q35-10.0", "pc-q35-11.1"], &["EPYC-v5", "EPYC-v1", "qemu64-v1"]);
    let both = [old.clone(), new];
    assert_eq!(best_machine(&both), Some("pc-q35-10.0".parse().unwrap()));
    assert_eq!(best_cpu(&both, false), Some("EPYC-v1"));
    assert_eq!(best_cpu(&both, true), Some("qemu64-v1"));
    assert_eq!(best_cpu(&[old], false), Some("EPYC-v4"));
    assert_eq!((best_cpu(&[], false), best_machine(&[])), (None, None));
}

fn script(text: &str, mode: u32) -> tempfile::TempPath {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
    file.into_temp_path()
}

/// One test, because a script that is still open for writing in a child just forked by another test cannot be run.
#[tokio::test]
async fn what_cannot_be_a_vmm_is_refused_with_the_reason() {
    let refusal = |path: PathBuf| async move { inspect(&path, Accelerator::Tcg, LIMIT).await.unwrap_err() };
    assert!(matches!(refusal("/nowhere/qemu".into()).await, InspectError::Missing(_)));
    assert!(matches!(refusal("/tmp".into()).await, InspectError::NotExecutable { .. }));
    let plain = script("#!/bin/sh\n", 0o644);
    assert!(matches!(refusal(plain.to_path_buf()).await, InspectError::NotExecutable { .. }));
    assert!(matches!(refusal("/bin/true".into()).await, InspectError::NotQemu { .. }));
    let talker = script("#!/bin/sh\necho 'no such option' >&2\nexit 1\n", 0o755);
    let error = refusal(talker.to_path_buf()).await;
    assert!(error.to_string().contains("no such option"), "{error}");
    let old = r#"#!/bin/sh
echo '{"QMP": {"version": {"qemu": {"micro": 9, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}'
read line
echo '{"return": {}, "id": 1}'
read line
"#;
    let error = refusal(script(old, 0o755).to_path_buf()).await;
    assert!(matches!(error, InspectError::TooOld { .. }), "{error}");
    assert!(error.to_string().contains("QEMU 7.2"), "{error}");

    // One that hangs is left behind dead.
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let hanging = script(&format!("#!/bin/sh\necho $$ > {}\nexec sleep 600\n", pid_file.display()), 0o755);
    let error = inspect(&hanging, Accelerator::Tcg, Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(error, InspectError::Timeout { .. }), "{error}");
    let pid: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    assert!(fermata_vault::process::Process::open(pid).is_err(), "process {pid} still lives");
}
