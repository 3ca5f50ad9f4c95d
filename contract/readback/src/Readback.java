import io.cloudevents.CloudEvent;
import io.cloudevents.jackson.JsonFormat;
import io.cloudevents.kafka.CloudEventDeserializer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * Reads a topic with the CloudEvents SDK and prints each event in CloudEvents' JSON format, one a
 * line: Readback BROKERS TOPIC COUNT.
 */
public final class Readback {
    public static void main(String[] args) {
        Map<String, Object> config = Map.of(
                "bootstrap.servers", args[0], "group.id", "readback-java-" + args[1], "auto.offset.reset", "earliest");
        try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new CloudEventDeserializer())) {
            consumer.subscribe(List.of(args[1]));
            for (int left = Integer.parseInt(args[2]); left > 0; ) {
                for (var record : consumer.poll(Duration.ofMillis(500))) {
                    CloudEvent event = record.value();
                    System.out.println(new String(new JsonFormat().serialize(event), StandardCharsets.UTF_8));
                    left--;
                }
            }
        }
    }
}
