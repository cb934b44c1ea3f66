// A program in a VM that approves what is coming to it as soon as it may; in the book's page on Scheduled Events.

const URL: &str = "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01";
const NAME: &str = "http://169.254.169.254/metadata/instance/compute/name?api-version=2021-08-01&format=text";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let me = ureq::get(NAME).header("Metadata", "true").call()?.body_mut().read_to_string()?;
    let mut tag = String::from("0");
    loop {
        // Long poll: the answer comes when the document changes, or after 30 s as 304.
        let wait = ureq::get(format!("{URL}&wait=30")).header("Metadata", "true").header("If-None-Match", &tag);
        let mut answer = wait.call()?;
        if answer.status() == 304 {
            continue;
        }
        tag = answer.headers().get("ETag").and_then(|tag| tag.to_str().ok()).unwrap_or("0").to_owned();
        let document: serde_json::Value = answer.body_mut().read_json()?;
        for event in document["Events"].as_array().into_iter().flatten() {
            let mine = event["Resources"].as_array().is_some_and(|names| names.iter().any(|name| *name == *me));
            if mine && event["EventStatus"] == "Scheduled" {
                // drain, hand leadership over, flush ...; then:
                let body = serde_json::json!({ "StartRequests": [{ "EventId": event["EventId"] }] });
                ureq::post(URL).header("Metadata", "true").send_json(body)?;
            }
        }
    }
}
