"""A listener in the style of the protocol's documentation: polls at 1 Hz, approves short pauses, prints what it sees."""
import json
import sys
import time
import urllib.request

URL = "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01"


def call(data=None):
    request = urllib.request.Request(URL, data, {"Metadata": "true"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        text = answer.read()
        return json.loads(text) if text else None


last, approved = -1, set()
while True:
    document = call()
    if document["DocumentIncarnation"] != last:
        last = document["DocumentIncarnation"]
        print([(e["EventStatus"], e["EventType"], e["DurationInSeconds"]) for e in document["Events"]], flush=True)
    for event in document["Events"]:
        short = event["EventType"] == "Freeze" and 0 <= event["DurationInSeconds"] < 9
        if event["EventStatus"] == "Scheduled" and short and event["EventId"] not in approved:
            call(json.dumps({"StartRequests": [{"EventId": event["EventId"]}]}).encode())
            approved.add(event["EventId"])
    if approved and not document["Events"]:
        sys.exit(0)
    time.sleep(1)
