use super::*;
use crate::view::tests::{healthy_three, map, silent};
use crate::wire::DiskStatus;

fn printed(format: Option<Format>, print: impl Fn(&mut Output) -> io::Result<()>) -> String {
    let (mut output, written) = Output::captured(format);
    print(&mut output).unwrap();
    written.text()
}

fn view() -> View {
    let mut answers = healthy_three();
    answers[1] = silent(2);
    View::of(answers, Some(map(2)))
}

#[test]
fn shards_are_a_table() {
    assert_eq!(
        printed(None, |output| output.shards(&view())),
        "\
SHARD  STATE          LEADER  REPLICAS    TERM  COMMIT  APPLIED  LAG  KEYS  BYTES
 meta  serves         n1      n1 (n2) n3     4     100      100   10     7  700 B
    1  serves         n1      n1 (n2) n3     4     100      100   10     7  700 B
    2  leader silent  -       n1 (n2) n3     4     100       90    -     0    0 B
"
    );
}

#[test]
fn shards_are_lines_of_exact_numbers_in_tsv() {
    let tsv = printed(Some(Format::Tsv), |output| output.shards(&view()));
    assert_eq!(tsv.lines().nth(1).unwrap(), "1\tserves\tn1\tn1 (n2) n3\t4\t100\t100\t10\t7\t700");
    let json = printed(Some(Format::Json), |output| output.shards(&view()));
    let line = json.lines().nth(2).unwrap();
    assert!(
        line.starts_with(concat!(
            r#"{"shard":2,"state":"leader_silent","serves":false,"#,
            r#""leader_node_id":0,"term":4,"commit":100,"applied":90,"lag":null,"#,
            r#""keys":0,"bytes":0,"voter_node_ids":[1,2,3],"#,
            r#""replicas":[{"node_id":1,"replica_id":0,"role":"follower","term":4,"#
        )),
        "{line}"
    );
}

#[test]
fn status_begins_with_the_problems() {
    let text = printed(None, |output| output.status(&view()));
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some(
            "1 of 2 shards serve; shard 2 is led by n2, which does not answer; 2 of 3 nodes answer"
        )
    );
    assert_eq!(lines.next(), Some("  • shard 2 is led by n2, which does not answer"));
    assert_eq!(lines.next(), Some("  • n2 (127.0.0.1:7402) does not answer: connection refused"));
    assert_eq!(lines.next(), Some(""));
    assert!(lines.next().unwrap().starts_with("NODE  ADDRESS         STATE   LEADS"));
    assert!(lines.next().unwrap().starts_with("n2    127.0.0.1:7402  silent      -"));
    assert!(lines.next().unwrap().starts_with("n1    127.0.0.1:7401  ready       1"));
}

#[test]
fn status_as_json_is_one_object() {
    let text = printed(Some(Format::Json), |output| output.status(&view()));
    assert_eq!(text.lines().count(), 1);
    assert!(
        text.starts_with(concat!(
            r#"{"summary":"1 of 2 shards serve; shard 2 is led by n2, "#,
            r#"which does not answer; 2 of 3 nodes answer","#,
            r#""healthy":false,"shards":2,"serving":1,"#,
            r#""problems":["shard 2 is led by n2, which does not answer","#,
            r#""n2 (127.0.0.1:7402) does not answer: connection refused"],"#,
            r#""nodes":[{"node_id":2,"address":"127.0.0.1:7402","answers":false,"#,
            r#""problem":"does not answer: connection refused"},"#,
            r#"{"node_id":1,"#
        )),
        "{text}"
    );
}

#[test]
fn locate_prints_tag_hash_and_shard() {
    let place = Place {
        shard: 3,
        range: (0x4000_0000_0000_0000, 0x5fff_ffff_ffff_ffff),
        shard_epoch: 1,
        map_epoch: 2,
        replicas: vec![2, 3, 1],
        leader: Some(3),
    };
    let at = Location { key: b"a{b}", tag: b"b", hash: 0x4a, place: Some(place) };
    assert_eq!(
        printed(None, |output| output.location(&at)),
        "tag       b\nhash      000000000000004a\nshard     3\n\
         range     4000000000000000–5fffffffffffffff\nreplicas  n2 n3 n1\nleader    n3\n"
    );
    assert_eq!(
        printed(Some(Format::Json), |output| output.location(&at)),
        "{\"key\":\"a{b}\",\"tag\":\"b\",\"hash\":\"000000000000004a\",\"shard\":3,\
         \"first\":\"4000000000000000\",\"last\":\"5fffffffffffffff\",\"shard_epoch\":1,\
         \"map_epoch\":2,\"replica_node_ids\":[2,3,1],\"leader_node_id\":3}\n"
    );
    let offline = Location { place: None, ..at };
    assert_eq!(
        printed(Some(Format::Tsv), |output| output.location(&offline)),
        "tag\tb\nhash\t000000000000004a\n"
    );
}

#[test]
fn nodes_show_the_room_on_their_disks() {
    let mut answers = healthy_three();
    let disk = DiskStatus {
        used_bytes: 40 << 20,
        free_bytes: 30 << 20,
        total_bytes: 80 << 20,
        reserve_bytes: 32 << 20,
        writes_refused: false,
        reusable_bytes: 5 << 20,
        level: DiskLevel::Ok.into(),
    };
    answers[0].status.as_mut().unwrap().disk = Some(disk);
    let view = View::of(answers, Some(map(2)));
    let tsv = printed(Some(Format::Tsv), |output| output.nodes(&view));
    let row: Vec<&str> = tsv.lines().next().unwrap().split('\t').collect();
    let of = |wanted: &str| row[NODES.iter().position(|column| column.0 == wanted).unwrap()];
    assert_eq!([of("DISK"), of("FREE"), of("REUSABLE")], ["41943040", "31457280", "5242880"]);
    let json = printed(Some(Format::Json), |output| output.nodes(&view));
    let disk = concat!(
        r#""disk":{"used_bytes":41943040,"free_bytes":31457280,"total_bytes":83886080,"#,
        r#""reserve_bytes":33554432,"writes_refused":false,"reusable_bytes":5242880,"level":"ok"}"#
    );
    assert!(json.lines().next().unwrap().contains(disk), "{json}");
}
