//! Fleets from files: what is accepted, and that every refusal names line, field, reason and way out.

use fermata_planner::fleet::{Fleet, Sequencing, from_csv, from_json};

const JSON: &str = r#"{
  "revision": 7,
  "sets": [
    {"name": "web", "update_domains": 3, "recovery_s": 600},
    {"name": "db", "sequencing": {"host_label": "power"}}
  ],
  "hosts": [
    {"name": "h1", "rack": "r1", "labels": {"power": "a"}, "work_s": 120},
    {"name": "h2", "rack": "r1", "fault_domain": 1, "cordoned": true,
     "windows": [{"days": ["sat"], "from": "22:00:00", "to": "04:00:00", "time_zone": "Europe/Berlin"}]}
  ],
  "vms": [
    {"name": "web-0", "host": "h1", "set": "web", "update_domain": 2},
    {"name": "web-1", "host": "h2", "set": "web"},
    {"name": "web-2", "host": "h2", "set": "web"},
    {"name": "lone", "host": "h2"}
  ]
}"#;

fn domains(fleet: &Fleet) -> Vec<String> {
    let member = |vm: &fermata_planner::fleet::Vm| vm.member.map_or("-".to_owned(), |m| m.domain.to_string());
    fleet.vms().iter().map(|vm| format!("{}={}", vm.name, member(vm))).collect()
}

#[test]
fn a_json_fleet_is_read_and_open_update_domains_are_assigned() {
    let fleet = from_json(JSON).unwrap();
    assert_eq!((fleet.revision(), fleet.hosts().len(), fleet.sets().len()), (7, 2, 2));
    // web-1 gets the emptiest domain; web-2 stands on the same host and must not make it a self-conflict.
    assert_eq!(domains(&fleet), ["web-0=2", "lone=-", "web-1=0", "web-2=0"]);
    assert_eq!(fleet.sets()[1].spec.sequencing, Sequencing::HostLabel("power".to_owned()));
    assert!(fleet.self_conflicts().is_empty());
}

#[test]
fn round_robin_goes_through_all_update_domains() {
    let rows: String = (0..7).map(|n| format!("h{n},v{n},web,\n")).collect();
    let fleet = from_csv(&format!("host,vm,set,update_domain\n{rows}"), 1).unwrap();
    assert_eq!(domains(&fleet), ["v0=0", "v1=1", "v2=2", "v3=3", "v4=4", "v5=0", "v6=1"]);
}

#[test]
fn csv_and_json_refusals_name_line_field_reason_and_way_out() {
    let json = |from: &str, to: &str| from_json(&JSON.replacen(from, to, 1)).unwrap_err().to_string();
    let csv = |rows: &str| from_csv(rows, 1).unwrap_err().to_string();
    let all = [
        json("\"update_domains\": 3", "\"update_domains\": 21"),
        json("\"update_domain\": 2", "\"update_domain\": 3"),
        json("\"update_domain\": 2", "\"update_domain\": 20"),
        json("\"work_s\": 120", "\"work_s\": \"long\""),
        json("\"work_s\": 120", "\"work_s\": 0"),
        json("\"host\": \"h2\", \"set\"", "\"host\": \"h9\", \"set\""),
        json("\"name\": \"web-1\"", "\"name\": \"web-0\""),
        json("\"name\": \"web-1\"", "\"name\": \"Web_1\""),
        json("\"name\": \"h2\"", "\"name\": \"h1\""),
        json("Europe/Berlin", "Europe/Bonn"),
        json("\"rack\": \"r1\", \"labels\"", "\"shelf\": \"r1\", \"labels\""),
        json("{\"name\": \"lone\", \"host\": \"h2\"}", "{\"name\": \"lone\"}"),
        json("\"revision\": 7,", "\"revision\": 7"),
        csv("vm\nv1\n"),
        csv("host,colour\nh1,red\n"),
        csv("host,vm,set,update_domain\nh1,v1,web,0\nh1,v2,web,twenty\n"),
        csv("host,vm,set,update_domain\nh1,v1,web,5\n"),
        csv("host,vm,set,update_domain\nh1,v1,web\n"),
        csv("host,rack,vm\nh1,r1,v1\nh1,r2,v2\n"),
        csv("host,vm,set\nh1,,web\n"),
        csv("host,vm\n,v1\n"),
        csv("host,cordoned\nh1,maybe\n"),
    ];
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn a_host_with_two_update_domains_of_a_set_is_named_with_the_vm_to_move() {
    let fleet = from_csv("host,vm,set,update_domain\nh1,a,web,0\nh1,b,web,1\nh1,c,web,1\nh2,d,web,2\n", 1).unwrap();
    let conflicts: Vec<String> = fleet.self_conflicts().iter().map(ToString::to_string).collect();
    assert_eq!(
        conflicts,
        [
            "host h1 carries update domains 0, 1 of availability set web, so it cannot be maintained; move a to another host"
        ]
    );
    let (h2, web) = (fleet.host_id(&"h2".parse().unwrap()).unwrap(), fleet.set_id(&"web".parse().unwrap()).unwrap());
    let domain = |n: u32| fermata_model::UpdateDomain::try_from(n).unwrap();
    assert!(fleet.check_placement(h2, web, domain(2)).is_ok());
    let refusal = fleet.check_placement(h2, web, domain(1)).unwrap_err().to_string();
    assert!(refusal.contains("`d`") && refusal.contains("another host, or give it update domain 2"), "{refusal}");
    assert!(fleet.check_placement(h2, web, domain(5)).unwrap_err().to_string().contains("use 0 to 4"));
}
