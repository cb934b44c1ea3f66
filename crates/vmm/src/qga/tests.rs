use super::*;

/// Plays the guest's agent on the other end of the channel with real bytes.
async fn channel() -> (tempfile::TempDir, PathBuf, tokio::net::UnixListener) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qga");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    (folder, path, listener)
}

const LIMIT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);

async fn read_command(stream: &mut BufReader<UnixStream>) -> Value {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await.unwrap();
    let start = usize::from(line.first() == Some(&SENTINEL));
    serde_json::from_slice(&line[start..]).unwrap()
}

async fn answer(stream: &mut BufReader<UnixStream>, sentinel: bool, value: Value) {
    let mut bytes = if sentinel { vec![SENTINEL] } else { Vec::new() };
    bytes.extend_from_slice(json!({"return": value}).to_string().as_bytes());
    bytes.push(b'\n');
    stream.get_mut().write_all(&bytes).await.unwrap();
}

#[tokio::test]
async fn left_over_answers_of_an_earlier_user_are_thrown_away() {
    let (_folder, path, listener) = channel().await;
    let agent = tokio::spawn(async move {
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        answer(&mut stream, false, json!(1)).await;
        answer(&mut stream, true, json!(7)).await;
        let sync = read_command(&mut stream).await;
        answer(&mut stream, true, sync["arguments"]["id"].clone()).await;
        assert_eq!(read_command(&mut stream).await["execute"], "guest-get-time");
        answer(&mut stream, false, json!(1_795_230_559_992_961_000_i64)).await;
    });
    let mut qga = Qga::connect(&path, LIMIT).await.unwrap();
    assert_eq!(qga.time(LIMIT).await.unwrap(), GuestTime(1_795_230_559_992_961_000));
    agent.await.unwrap();
}

#[tokio::test]
async fn after_a_timeout_a_late_answer_is_not_taken_for_the_next_one() {
    let (_folder, path, listener) = channel().await;
    let agent = tokio::spawn(async move {
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        let sync = read_command(&mut stream).await;
        answer(&mut stream, true, sync["arguments"]["id"].clone()).await;
        assert_eq!(read_command(&mut stream).await["execute"], "guest-get-time");
        // Late: the next command is a sync already.
        let sync = read_command(&mut stream).await;
        answer(&mut stream, false, json!(1)).await;
        answer(&mut stream, true, sync["arguments"]["id"].clone()).await;
        assert_eq!(read_command(&mut stream).await["execute"], "guest-get-time");
        answer(&mut stream, false, json!(2)).await;
    });
    let mut qga = Qga::connect(&path, LIMIT).await.unwrap();
    assert!(matches!(qga.time(SHORT).await, Err(QgaError::Timeout { command: "guest-get-time", .. })));
    assert_eq!(qga.time(LIMIT).await.unwrap(), GuestTime(2));
    agent.await.unwrap();
}

#[tokio::test]
async fn a_guest_without_agent_is_a_timeout_and_a_stopped_vm_is_closed() {
    let (_folder, path, listener) = channel().await;
    assert!(matches!(Qga::connect(&path, SHORT).await, Err(QgaError::Timeout { .. })));
    let closer = tokio::spawn(async move {
        // The first connection is the one above; then the VMM goes away.
        drop(listener.accept().await.unwrap());
        drop(listener.accept().await.unwrap());
    });
    assert!(matches!(Qga::connect(&path, LIMIT).await, Err(QgaError::Closed { .. })));
    closer.await.unwrap();
    assert!(matches!(Qga::connect(Path::new("/nowhere"), LIMIT).await, Err(QgaError::Connect { .. })));
}
