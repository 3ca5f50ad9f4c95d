import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Connection;
import java.sql.DriverManager;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.StringDeserializer;

/** Order totals per customer, in a database of one's own: Consumer SCHEMA_FILE GROUP [TOPIC]. */
public final class Consumer {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final Map<String, Integer> SIGN = Map.of("order.created.v1", 1, "order.cancelled.v1", -1);
    private static final String NEW = "insert into handled_events (event_id) values (?) on conflict do nothing";
    private static final String ADD = """
            insert into order_totals as t (customer_id, currency, orders, amount_cents) values (?, ?, ?, ?)
            on conflict (customer_id, currency) do update
            set orders = t.orders + excluded.orders, amount_cents = t.amount_cents + excluded.amount_cents""";

    public static void main(String[] args) throws Exception {
        Map<String, Object> config = Map.of(
                "bootstrap.servers", System.getenv("KAFKA_BROKERS"),
                "group.id", args[1],
                "auto.offset.reset", "earliest",
                // An offset is committed after the effect, by us.
                "enable.auto.commit", false,
                "session.timeout.ms", 6000);
        // Any failure ends the process: what was not committed comes again at the next start.
        try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer());
                var database = DriverManager.getConnection(System.getenv("JDBC_URL"))) {
            database.createStatement().execute(Files.readString(Path.of(args[0])));
            database.setAutoCommit(false);
            consumer.subscribe(List.of(args.length > 2 ? args[2] : "orders.events.v1"));
            while (true) {
                ConsumerRecords<String, String> records = consumer.poll(Duration.ofMillis(500));
                if (records.isEmpty()) {
                    continue;
                }
                // One transaction for the effect and for the ids by which repeats are known.
                for (ConsumerRecord<String, String> record : records) {
                    handle(database, record);
                }
                database.commit();
                consumer.commitSync();
            }
        }
    }

    /** Applies one event; a repeat of one that was applied before changes nothing. */
    private static void handle(Connection database, ConsumerRecord<String, String> record) throws Exception {
        Integer sign = SIGN.get(header(record, "ce_type"));
        if (sign == null) {
            return; // a type that is newer than this program
        }
        try (var insert = database.prepareStatement(NEW); var add = database.prepareStatement(ADD)) {
            insert.setObject(1, UUID.fromString(header(record, "ce_id")));
            if (insert.executeUpdate() == 0) {
                return;
            }
            JsonNode order = JSON.readTree(record.value());
            add.setLong(1, order.get("customerId").longValue());
            add.setString(2, order.get("currency").textValue());
            add.setLong(3, sign);
            add.setLong(4, sign * order.get("amountCents").longValue());
            add.executeUpdate();
        }
    }

    private static String header(ConsumerRecord<String, String> record, String name) {
        var header = record.headers().lastHeader(name);
        return header == null ? "" : new String(header.value(), java.nio.charset.StandardCharsets.UTF_8);
    }
}
